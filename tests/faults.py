"""Breaks what is around a training run, one kind after the other, and prints a table: kind, tried, survived.

    python tests/faults.py PROJECT 3

A try survives when the run ends as it would have ended without the fault, or in one line that says what to do, and when
what it has left goes on to the same end. A run is a fork of this process, which has torch imported already.
"""

import contextlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
FLAGS = "--model_name toys.Net --dataset toys.Blobs --accelerator cpu --num_threads 1 --num_workers 0".split()
FLAGS += "--max_epochs 4 --batch_size 16 --every_n_train_steps 1 --seed 3".split()
RESUME = ["--ckpt_path", "last"]
KINDS: dict[str, Callable[[Path], None]] = {}


class Fault(AssertionError):
    """A run that did not survive."""


def kind(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Adds a function of a folder, in which it tries a fault, to the table."""

    def add(function: Callable[[Path], None]) -> Callable[[Path], None]:
        KINDS[name] = function
        return function

    return add


def start(folder: Path, *argv: str, before: Callable[[], object] = lambda: None) -> int:
    """Starts a run in a folder, in a process of its own; before: called in it."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        before()
        import main

        main.main([*argv])
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def wait(child: int, seconds: float = 120) -> int:
    """The status with which a run ended, -n where a signal ended it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise Fault("it did not end")


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Waits for something that a run does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Fault("it did not come so far")
        time.sleep(0.002)


def run(folder: Path, *argv: str, before: Callable[[], object] = lambda: None) -> int:
    """Runs to the end."""
    return wait(start(folder, *argv, before=before))


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Fault(what)


def said(folder: Path) -> str:
    return (folder / "err").read_text(errors="replace")


def one_line(folder: Path, status: int, *wanted: str) -> None:
    """It ended in one line, with these words."""
    lines = [line for line in said(folder).splitlines() if line.strip()]
    expect(status in (1, 2), f"status {status}")
    expect("Traceback" not in said(folder), "a traceback")
    expect(lines and all(word in lines[-1] for word in wanted), f"it says {lines[-1:]}")


def weights(folder: Path) -> list[bytes]:
    import torch

    last = torch.load(folder / LAST, weights_only=True)
    return [value.numpy().tobytes() for value in last["state_dict"].values()]


def ends_well(folder: Path, status: int = 0) -> None:
    """It ended as the run that nothing happened to, with the same weights and the same logged rows."""
    expect(status == 0, f"status {status}")
    expect("Traceback" not in said(folder), "a traceback")
    expect(weights(folder) == weights(WHOLE), "other weights")
    expect((folder / RUN / "metrics.csv").read_text() == (WHOLE / RUN / "metrics.csv").read_text(), "other rows")
    expect(not list((folder / RUN).rglob("*.part")), "a half-written file is left")


def goes_on(folder: Path) -> None:
    """What is left goes on to the same end."""
    (folder / "err").write_text("")
    ends_well(folder, run(folder, *RESUME))


def copy_of_whole(folder: Path) -> Path:
    shutil.copytree(WHOLE / "lightning_logs", folder / "lightning_logs")
    return folder / RUN


def begun(folder: Path, *argv: str) -> int:
    """A run that has saved its first checkpoint."""
    child = start(folder, *FLAGS, *argv)
    until(lambda: (folder / LAST).exists())
    time.sleep(random.random() * 0.3)
    return child


def cut_off(folder: Path) -> None:
    """Starts a run, and kills it once it has a checkpoint."""
    child = begun(folder)
    os.killpg(child, signal.SIGKILL)
    wait(child)


def ends_by_signal(number: signal.Signals, name: str) -> None:
    @kind(name)
    def signalled(folder: Path) -> None:
        child = begun(folder)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        status = wait(child)
        expect(status in (0, 128 + number), f"status {status}")
        if status:
            expect("python main.py --ckpt_path" in (folder / "out").read_text(), "it does not say how to go on")
        goes_on(folder)


for number, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"), (signal.SIGHUP, "the terminal is closed")):
    ends_by_signal(number, name)
ends_by_signal(signal.SIGUSR1, "SIGUSR1, a cluster's warning")


@kind("SIGKILL")
def killed(folder: Path) -> None:
    cut_off(folder)
    goes_on(folder)


@kind("SIGSTOP, and SIGCONT a second later")
def stopped(folder: Path) -> None:
    child = begun(folder, "--hang_minutes", "0.01")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGSTOP)
        time.sleep(1.5)
        os.killpg(child, signal.SIGCONT)
    ends_well(folder, wait(child))


@kind("two signals, one after the other")
def two_signals(folder: Path) -> None:
    child = begun(folder)
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
    expect(wait(child) in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT), "another status")
    goes_on(folder)


@kind("a worker is killed")
def worker_killed(folder: Path) -> None:
    child = start(folder, *FLAGS, "--num_workers", "2", "--max_epochs", "400", "--seed", "4")
    until(lambda: (folder / LAST).exists())
    children = Path(f"/proc/{child}/task/{child}/children").read_text().split()
    for pid in children[:1]:
        os.kill(int(pid), signal.SIGKILL)
    status = wait(child)
    expect(status in (0, 1), f"status {status}")
    expect(not status or "DataLoader worker" in said(folder), "it does not name the worker")
    expect(run(folder, *RESUME, "--max_epochs", "5") in (0, 2), "it does not go on")


def close(*numbers: int) -> Callable[[], None]:
    def closing() -> None:
        for number in numbers:
            os.close(number)
        for number, name in ((1, "stdout"), (2, "stderr"), (0, "stdin")):
            if number in numbers:
                setattr(sys, name, None)

    return closing


def stream(name: str, before: Callable[[], object]) -> None:
    KINDS[name] = lambda folder: ends_well(folder, run(folder, *FLAGS, before=before))


def into(path: str, number: int) -> Callable[[], None]:
    return lambda: os.dup2(os.open(path, os.O_WRONLY), number) and None


def into_pipe_of_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


stream("stdin is closed", close(0))
stream("stdout is closed", close(1))
stream("all streams are closed", close(0, 1, 2))
stream("nobody reads what it prints", into_pipe_of_nobody)
stream("stdout is a file on a full disk", into("/dev/full", 1))
stream("stderr is a file on a full disk", into("/dev/full", 2))
stream("LANG=C: a terminal without letters", lambda: sys.stdout.reconfigure(encoding="ascii"))  # type: ignore[union-attr]
stream("no home folder", lambda: os.environ.pop("HOME", None))
stream("64 open files at most", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
stream("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1", lambda: os.environ.update(TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1"))
stream("a umask that lets nobody read", lambda: os.umask(0o077) and None)


@kind("little memory (ulimit -v)")
def little_memory(folder: Path) -> None:
    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, used + 2**25))

    status = run(folder, *FLAGS, "--hidden_dim", "30000000", before=limit)
    expect(status == 1, f"status {status}")
    expect("memory" in said(folder), "it does not say that memory is short")


def full_disk(name: str, size: str, *argv: str) -> None:
    """A disk of a size, mounted for the run."""

    @kind(name)
    def full(folder: Path) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
        if done.returncode:
            raise NotImplementedError("a disk can be mounted by root alone")
        try:
            status = run(folder, *FLAGS, *argv, before=lambda: log_elsewhere(folder))
            text = Path(f"{folder}.log").read_text(errors="replace")
            expect("Traceback" not in text, f"a traceback: {text[-400:]}")
            expect(status in (0, 1, 2), f"status {status}")
            expect(status == 0 or "No space left" in text or "cannot" in text, f"it says {text[-200:]}")
            expect(not list(folder.rglob("*.part")), "a half-written file is left")
            for path in folder.rglob("*.ckpt"):
                check = start(WHOLE, "test", "--ckpt_path", str(path), "--default_root_dir", tempfile.mkdtemp())
                expect(wait(check) == 0, f"{path.name} is broken")
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def log_elsewhere(folder: Path) -> None:
    file = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


full_disk("a full disk, at the first file", "4k")
full_disk("a full disk, at the first checkpoint", "32k")
full_disk("a full disk, somewhere in the run", "100k")
full_disk("a full disk, at the pictures", "250k")
full_disk("a full disk, at larger checkpoints", "3m", "--hidden_dim", "20000")


@kind("metrics.csv and the events find no room for a while")
def no_room(folder: Path) -> None:
    child = begun(folder)
    path = folder / RUN / "metrics.csv"
    with contextlib.suppress(FileNotFoundError):
        path.rename(folder / "kept")
        path.symlink_to("/dev/full")
        time.sleep(0.05)
        os.kill(child, signal.SIGSTOP)
        (folder / "kept").replace(path)
        os.kill(child, signal.SIGCONT)
    status = wait(child)
    expect(status == 0, f"status {status}")
    expect(weights(folder) == weights(WHOLE), "other weights")


@kind("a folder that cannot be written")
def no_folder(folder: Path) -> None:
    (folder / "lightning_logs").touch()
    one_line(folder, run(folder, *FLAGS), "cannot write to")


def broken(name: str, path: Path, change: Callable[[bytes], bytes], *argv: str, goes: bool = False) -> None:
    """A file of a finished run is broken; then the run goes on, or a line says which file it is."""

    @kind(name)
    def breaks(folder: Path) -> None:
        copy_of_whole(folder)
        where = folder / path
        where.write_bytes(change(where.read_bytes()))
        status = run(folder, *argv)
        if goes:
            expect(status == 0, f"status {status}: {said(folder)[-300:]}")
            expect("Traceback" not in said(folder), "a traceback")
        else:
            one_line(folder, status, path.name)


def hole(data: bytes) -> bytes:
    at = random.randrange(max(1, len(data) - 4096))
    return data[:at] + bytes(4096) + data[at + 4096 :]


MORE = [*RESUME, "--max_epochs", "5"]
BY_NAME = ["test", "--ckpt_path", str(LAST)]
broken("a checkpoint is cut short", LAST, lambda data: data[: len(data) // 2], *MORE, goes=True)
broken("a checkpoint is empty", LAST, lambda data: b"", *MORE, goes=True)
broken("a checkpoint is something else", LAST, lambda data: b"x" * len(data), *BY_NAME)
broken("4 KiB of a checkpoint are zero", LAST, hole, *BY_NAME)
broken("config.yaml is no text", RUN / "config.yaml", lambda data: b"\xff" + data, *MORE)
broken("config.yaml is no YAML", RUN / "config.yaml", lambda data: b"[" + data, *MORE)
broken("metrics.json is empty", RUN / "metrics.json", lambda data: b"", *MORE, goes=True)
broken("metrics.csv is no text", RUN / "metrics.csv", lambda data: b"\xff" + data, *MORE)
broken("environment.json is broken", RUN / "environment.json", lambda data: b"{", *MORE)
broken("a broken run among those of a report", RUN / "config.yaml", lambda data: b"\xff", "report", goes=True)


@kind("the clock is set back by a day")
def clock(folder: Path) -> None:
    cut_off(folder)
    tomorrow = time.time() + 86400
    for path in folder.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    goes_on(folder)


@kind("its best file is replaced while it is read")
def replaced(folder: Path) -> None:
    child = start(folder, *FLAGS, "--max_epochs", "60")
    until(lambda: list((folder / RUN).glob("checkpoints/best-*.ckpt")))
    (folder / "reader").mkdir()
    status = run(folder, "test", "--ckpt_path", "best")
    expect(status in (0, 2), f"status {status}")
    expect("Traceback" not in said(folder), f"a traceback: {said(folder)[-300:]}")
    os.killpg(child, signal.SIGKILL)
    wait(child)


@kind("two that go on with one run")
def two(folder: Path) -> None:
    cut_off(folder)
    both = [start(folder, *RESUME) for _ in range(2)]
    statuses = sorted(wait(one) for one in both)
    expect(0 in statuses, f"statuses {statuses}")
    expect("Traceback" not in said(folder), f"a traceback: {said(folder)[-300:]}")
    expect(weights(folder) == weights(WHOLE), "other weights")


@kind("half-written files are left by another")
def left(folder: Path) -> None:
    cut_off(folder)
    (folder / RUN / "checkpoints" / "dead.ckpt.part").write_bytes(b"half")
    goes_on(folder)


@kind("the run is moved before it goes on")
def moved(folder: Path) -> None:
    cut_off(folder)
    (folder / "elsewhere").mkdir()
    (folder / "lightning_logs").rename(folder / "elsewhere" / "lightning_logs")
    status = run(folder, "--ckpt_path", f"elsewhere/{RUN}")
    expect(status == 0, f"status {status}")
    (folder / "elsewhere" / "lightning_logs").rename(folder / "lightning_logs")
    expect(weights(folder) == weights(WHOLE), "other weights")


@kind("spaces, quotes and newlines in the folder's name")
def odd_name(folder: Path) -> None:
    inner = folder / "a 'b' \"c\"\n;d"
    inner.mkdir()
    ends_well(inner, run(inner, *FLAGS))


def table(tries: int, scratch: Path) -> dict[str, list[str]]:
    """Tries each kind and returns what went wrong, by kind."""
    failed: dict[str, list[str]] = {}
    print(f"{'kind':<58} tried survived")
    for name, attempt in KINDS.items():
        failed[name], tried = [], 0
        for number in range(tries):
            folder = scratch / f"{len(failed)}-{number}"
            folder.mkdir()
            try:
                attempt(folder)
            except NotImplementedError as reason:
                failed[name].append(f"not tried: {reason}")
                continue
            except Exception as error:
                failed[name].append(f"{type(error).__name__}: {error}")
            tried += 1
        wrong = [line for line in failed[name] if not line.startswith("not tried")]
        print(f"{name:<58} {tried:>5} {tried - len(wrong):>8}", flush=True)
        for line in dict.fromkeys(failed[name]):
            print(f"    {line}")
    return failed


if __name__ == "__main__":
    sys.path[:0] = [str(Path(sys.argv[1]).resolve()), str(Path(__file__).resolve().parent / "engine")]
    os.environ["STARTED_BY_FAULTS"] = "1"
    for module in "main matplotlib.figure pandas pytorch_lightning.callbacks torch.utils.tensorboard".split():
        importlib.import_module(module)  # once for all tries
    import torch

    torch.set_num_threads(1)
    random.seed(0)
    only = sys.argv[3:]
    KINDS = {name: attempt for name, attempt in KINDS.items() if not only or any(word in name for word in only)}
    with tempfile.TemporaryDirectory() as scratch_folder:
        WHOLE = Path(scratch_folder) / "whole"
        WHOLE.mkdir()
        run(WHOLE, *FLAGS)
        outcome = table(int(sys.argv[2]), Path(scratch_folder))
    lost = [name for name, lines in outcome.items() if any(not line.startswith("not tried") for line in lines)]
    print(json.dumps({"kinds": len(outcome), "survived": len(outcome) - len(lost)}))
    sys.exit(bool(lost))
