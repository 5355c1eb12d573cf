"""Disks that are full or broken, files that are half written, and two that work on one run."""

import csv
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import main
import pytest
import torch
import toys
from data import DInterface
from engine.checkpointing.find_checkpoint import find_checkpoint
from paths import PROJECT, TOYS
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LambdaCallback

RUN = Path("lightning_logs/version_0")


def full(name: str) -> Path:
    """Lets the next file that is to become NAME find a full disk."""
    part = Path(f"{name}.{os.getpid()}.part")
    part.symlink_to("/dev/full")
    return part


def points(metric: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(RUN), size_guidance={"scalars": 0}).Reload()
    return [(point.step, point.value) for point in events.Scalars(metric)]


def test_what_found_no_room_is_made_up_when_there_is_some(train, capsys, monkeypatch) -> None:
    """The disk is full from the second epoch to the fourth, for metrics.csv and for TensorBoard's file."""
    argv = ("--max_epochs", 6, "--log_every_n_steps", 1, "--no-pictures")
    train(*argv, "--default_root_dir", "whole")
    hidden: list[tuple[Path, Path]] = []

    def fill(trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            for path in (RUN / "metrics.csv", next(RUN.glob("events.*"))):
                hidden.append((path, path.rename(RUN / f"hidden.{len(hidden)}")))
                path.symlink_to("/dev/full")
        for path, kept in hidden if trainer.current_epoch == 4 else ():
            kept.replace(path)

    capsys.readouterr()
    callback = LambdaCallback(on_train_epoch_start=fill)
    assert "test_acc" in main.main([*TOYS, *map(str, argv)], [callback])
    told = capsys.readouterr().err.splitlines()
    assert len(hidden) == len(told) == 2
    assert all("cannot write" in line and "No space left on device; the run goes on" in line for line in told)
    whole = Path("whole") / RUN
    assert (RUN / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    with (whole / "metrics.csv").open(newline="") as file:
        wanted = [(int(row["step"]), float(row["val_loss"])) for row in csv.DictReader(file) if row["val_loss"]]
    assert len(wanted) == 6
    assert [step for step, _ in points("val_loss")] == [step for step, _ in wanted]
    assert [value for _, value in points("val_loss")] == pytest.approx([value for _, value in wanted])


def test_tensorboards_first_words_wait_for_room_too(train, capsys, monkeypatch) -> None:
    """The disk is full when its file is begun."""
    allowed, found = resource.getrlimit(resource.RLIMIT_FSIZE), list[int]()

    def fill(self: DInterface) -> None:
        if not found:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, allowed[1]))

    def make_room(self: DInterface, stage: str) -> None:
        found.append(sum(path.stat().st_size for path in RUN.glob("events.*")))
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)

    monkeypatch.setattr(DInterface, "prepare_data", fill)
    monkeypatch.setattr(DInterface, "setup", make_room)
    try:
        train("--max_epochs", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert [step for step, _ in points("val_loss")] == [2, 4]
    assert found[0] == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("cannot write lightning_logs/version_0/events.")
    assert line.endswith("File too large; the run goes on")


def test_what_only_shows_ends_no_run(train, capsys) -> None:
    paths = [RUN / name for name in ("metrics.json", "environment.json", "curves.png", "confusion_matrix.png")]
    train("--pictures", "--max_epochs", 2)
    for path in paths:
        path.unlink()
        full(str(path))
    capsys.readouterr()
    assert "test_acc" in main.main(["--ckpt_path", "version_0", "--max_epochs", "3"])
    told = capsys.readouterr().err
    for path in paths:
        assert told.count(f"cannot write {path}: No space left on device;") == 1
        assert not path.exists()
    assert not list(RUN.rglob("*.part"))
    assert "test_acc" in main.main(["--ckpt_path", "version_0", "--max_epochs", "4"])
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize("part", ["predictions.csv.{}.part", "predictions.{}.0.part"])
def test_predictions_that_find_no_room_leave_the_old_ones(train, part: str) -> None:
    train("--max_epochs", 1)
    main.main(["predict", "--ckpt_path", "version_0"])
    before = (RUN / "predictions.csv").read_bytes()
    (RUN / part.format(os.getpid())).symlink_to("/dev/full")
    with pytest.raises(SystemExit, match=r"main.py: error: cannot write .*: No space left on device; \d+ MiB are free"):
        main.main(["predict", "--ckpt_path", "version_0"])
    assert (RUN / "predictions.csv").read_bytes() == before
    assert not list(RUN.rglob("*.part"))


@pytest.mark.parametrize(("action", "format"), [("export", "pt2"), ("export", "onnx")])
def test_files_that_find_no_room_are_not_there(train, action: str, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    train("--max_epochs", 1, "--hidden_dim", 50_000)
    before = sorted(path.name for path in RUN.iterdir())
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, allowed[1]))
    try:
        with pytest.raises(SystemExit, match=r"main.py: error: cannot write"):
            main.main([action, "--ckpt_path", "version_0", "--format", format])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert sorted(path.name for path in RUN.iterdir()) == before


@pytest.mark.parametrize("name", ["report.csv", "report.xlsx", "curves.png"])
def test_a_report_that_finds_no_room_is_one_line(train, capsys, name: str) -> None:
    train("--max_epochs", 1)
    Path("report").mkdir()
    full(f"report/{name}")
    with pytest.raises(SystemExit, match="2"):
        main.main(["report"])
    line = f"main.py: error: --out report: cannot write report/{name}: No space left on device"
    assert line in capsys.readouterr().err
    assert not list(Path("report").glob(f"{name}*"))


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\udcff", "[" * 100_000])
def test_broken_metrics_are_said_and_written_anew(train, capsys, content: str) -> None:
    train("--max_epochs", 1)
    (RUN / "metrics.json").write_bytes(content.encode(errors="surrogateescape"))
    told = main.main(["test", "--ckpt_path", "version_0"])
    assert json.loads((RUN / "metrics.json").read_text()) == told
    assert capsys.readouterr().err.count(f"{RUN}/metrics.json is broken") == 1


BROKEN = {"metrics.csv": b"epoch\xff,step\n", "environment.json": b"{", "data.json": b"", "config.yaml": b"\xff: ["}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_of_a_run_that_goes_on_is_named(train, capsys, name: str) -> None:
    train("--max_epochs", 1, "--dataset", "toys.Named")
    assert (RUN / name).exists()
    (RUN / name).write_bytes(BROKEN[name])
    with pytest.raises(SystemExit, match="2"):
        main.main(["--ckpt_path", "version_0", "--max_epochs", "2"])
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("main.py: error: ")
    assert f"{RUN / name} is " in told


def test_a_disk_that_became_read_only_says_what_could_not_be_saved(train, monkeypatch) -> None:
    train("--max_epochs", 1, "--logger", "csv")
    refuse = OSError(30, "Read-only file system")

    def read_only(*_: object, **__: object) -> None:
        raise refuse

    monkeypatch.setattr(torch, "save", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(SystemExit, match=r"cannot save .*\.ckpt: Read-only file system"):
        main.main(["--ckpt_path", "version_0", "--max_epochs", "2"])


def test_best_and_last_are_found_while_a_run_replaces_them(train, capsys) -> None:
    train("--max_epochs", 1)
    best = next(RUN.glob("checkpoints/best-*.ckpt"))
    over = threading.Event()

    def replace() -> None:
        old = best
        for epoch in range(10**9):
            new = best.with_name(f"best-epoch{epoch}-val_loss=0.5.ckpt")
            shutil.copy(old, f"{new}.part")
            os.replace(f"{new}.part", new)
            old.unlink()
            shutil.copy(new, f"{best.parent}/last.ckpt.part")
            os.replace(f"{best.parent}/last.ckpt.part", best.with_name("last.ckpt"))
            old = new
            if over.is_set():
                return

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(300):
            for name in ("last", "best", "version_0"):
                found = find_checkpoint(name, Path("lightning_logs"), resume=name == "last")
                assert found.name.startswith("best" if name != "last" else "last")
    finally:
        over.set()
        writer.join()
    assert capsys.readouterr().err == ""


def test_a_checkpoint_that_is_gone_when_it_is_read_is_one_line(train, capsys) -> None:
    train("--max_epochs", 1)

    def replace(*_: object, **__: object) -> None:
        next(RUN.glob("checkpoints/best-*")).unlink()

    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", "best"], [LambdaCallback(setup=replace)])
    assert "is gone: a run that trains has put another in its place; try again" in capsys.readouterr().err


MANY = """
import multiprocessing, os
from pathlib import Path
from engine.checkpointing import run_lock
from engine.errors import UsageError

def race(barrier, runs):
    for run in runs:
        barrier.wait()
        try:
            run_lock.acquire(run, "")
            with open(f"{run}.won", "a") as file:
                file.write("x")
        except UsageError as error:
            assert "is being trained by process" in str(error)
        barrier.wait()
        run_lock.release()

fork = multiprocessing.get_context("fork")
runs = [Path(f"version_{number}") for number in range(60)]
if not os.fork():
    for run in runs[:40]:
        run_lock.acquire(run, "")
    os._exit(0)  # dead, with its claims
os.wait()
barrier = fork.Barrier(6)
others = [fork.Process(target=race, args=(barrier, runs)) for _ in range(6)]
for one in others:
    one.start()
for one in others:
    one.join(60)
print([Path(f"{run}.won").read_text() for run in runs] == ["x"] * 60, [one.exitcode for one in others], os.listdir())
"""


def test_of_many_that_start_together_one_gets_the_run() -> None:
    """Runs that a dead process had claimed, and runs that nobody had."""
    done = subprocess.run(
        [sys.executable, "-c", MANY], env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("True [0, 0, 0, 0, 0, 0]"), done.stderr[-2000:]
    assert not list(Path().glob(".*"))


def test_the_lock_of_another_host_counts_and_that_of_a_dead_process_does_not(train, capsys) -> None:
    train("--max_epochs", 1)
    lock = RUN.with_name(".version_0.lock")
    lock.mkdir()
    (lock / ".nfs0000000012").touch()
    (claim := lock / "elsewhere+1+1+").touch()
    with pytest.raises(SystemExit, match="2"):
        main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    assert "is being trained by process 1 on elsewhere" in capsys.readouterr().err
    claim.rename(lock / f"{socket.gethostname()}+{2**22 + 1}+1+")  # dead
    main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    assert not lock.exists()


def test_a_command_at_work_keeps_its_files_when_a_run_goes_on(train) -> None:
    train("--max_epochs", 1)
    at_work, left = RUN / "predictions.77.0.part", RUN / "labels.json.78.part"
    at_work.touch()
    left.touch()
    os.utime(left, (0, 0))
    (RUN / "checkpoints/last.ckpt.part").touch()
    main.main(["--ckpt_path", "version_0", "--max_epochs", "2"])
    assert list(RUN.rglob("*.part")) == [at_work]


def test_two_predict_at_the_same_time(train, monkeypatch) -> None:
    train("--max_epochs", 1)
    main.main(["predict", "--ckpt_path", "version_0"])
    wanted = (RUN / "predictions.csv").read_text()
    (RUN / "predictions.77.0.part").write_bytes(b"another's")
    main.main(["predict", "--ckpt_path", "version_0"])
    assert (RUN / "predictions.csv").read_text() == wanted
    assert (RUN / "predictions.77.0.part").read_bytes() == b"another's"


def test_a_name_with_a_newline_is_one_line_of_predictions(train, monkeypatch) -> None:
    built: Callable[..., None] = toys.Named.__init__

    def build(self: toys.Named, *args: object, **kwargs: object) -> None:
        built(self, *args, **kwargs)
        self.ids = [f"a\n{index}\x1b[2J\udcff" for index in range(self.num_items)]

    monkeypatch.setattr(toys.Named, "__init__", build)
    train("--max_epochs", 1, "--dataset", "toys.Named")
    main.main(["predict", "--ckpt_path", "version_0", "--format", "npy"])
    lines = (RUN / "predictions.txt").read_text().splitlines()
    assert len(lines) == 9
    assert lines[0].startswith("a\\n")
    main.main(["predict", "--ckpt_path", "version_0"])
    assert len((RUN / "predictions.csv").read_text()) > 100


def test_the_command_that_goes_on_can_be_pasted(capsys) -> None:
    import shlex
    import signal

    def end(trainer: Trainer, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    root = "a folder; rm -rf 'x'"
    callback = LambdaCallback(on_train_batch_end=end)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        main.main([*TOYS, "--max_epochs", "9", "--default_root_dir", root], [callback])
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words == ["python", "main.py", "--ckpt_path", f"{root}/{RUN}"]
