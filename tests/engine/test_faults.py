"""What goes wrong in real life: nothing is lost, and one line says what happened."""

import contextlib
import csv
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import main
import psutil
import pytest
import torch
import toys
from paths import PROJECT, TOYS

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a run in a process group of its own and waits until it has begun to train."""
    runs = []

    def start(*argv: str, python: str = sys.executable) -> subprocess.Popen[str]:
        command = [python, str(PROJECT / "main.py"), *TOYS, "--max_epochs", "100000", *argv]
        with Path("out").open("w") as out, Path("err").open("w") as err:
            runs.append(subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True))
        deadline = time.monotonic() + 900
        while not LAST.exists() and runs[-1].poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return runs[-1]

    yield start
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


TWO = ["--devices", "2", "--strategy", "ddp"]
LONG_VALIDATION = ["--num_items", "12000", "--val_fraction", "0.5", "--batch_size", "1", "--limit_train_batches", "3"]


def second_rank() -> int:
    """The number of that process of the run."""
    variables = {"LOCAL_RANK": "1", "STARTED_BY_TEST": os.environ["STARTED_BY_TEST"]}.items()
    found = [one for one in psutil.process_iter(["environ"]) if variables <= (one.info["environ"] or {}).items()]
    return found[0].pid


def group(run: subprocess.Popen) -> int:
    """The number of a run's process group, which is another one where a warm python runs it."""
    here = [one.pid for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == os.getcwd()]
    return next((pid for pid in here if pid not in (run.pid, os.getpid()) and os.getpgid(pid) == pid), run.pid)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to", "argv"),
    [
        (signal.SIGTERM, "all", ["--num_workers", "2"]),
        (signal.SIGINT, "all", TWO),
        (signal.SIGUSR1, "the second rank", TWO),
        (signal.SIGHUP, "the parent", LONG_VALIDATION),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(
    start, warm_python: str, number: signal.Signals, to: str, argv: list[str]
) -> None:
    run = start(*argv, python=sys.executable if number == signal.SIGINT else warm_python)
    os.kill({"all": -group(run), "the parent": run.pid}.get(to) or second_rank(), number)
    assert run.wait(timeout=900) == 128 + number, Path("err").read_text()[-2000:]
    assert Path("out").read_text().splitlines()[-1] == f"python main.py --ckpt_path {RUN}"
    step = torch.load(LAST, weights_only=True)["global_step"]
    if argv == LONG_VALIDATION:
        assert step == 3  # it was in the first validation, and did not wait for its end
    short = ["--limit_val_batches", "2", "--limit_test_batches", "2", "--devices", "1", "--strategy", "auto"]
    main.main(["--ckpt_path", str(RUN), "--max_steps", str(step + 2), *short])
    assert torch.load(LAST, weights_only=True)["global_step"] == step + 2


def test_under_nohup_a_run_outlives_its_terminal(train, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(toys.Net, "each_forward", lambda self: os.kill(os.getpid(), signal.SIGHUP))
        assert "test_acc" in train("--max_epochs", 1)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_kill_9_leaves_a_checkpoint_that_goes_on(start, warm_python: str) -> None:
    run = start("--every_n_train_steps", "1", python=warm_python)
    time.sleep(0.5)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(timeout=900)
    step = torch.load(LAST, weights_only=True)["global_step"]
    (RUN / "checkpoints" / "dead.ckpt.part").write_bytes(b"half")
    main.main(["--ckpt_path", "last", "--max_steps", str(step + 2)])
    assert torch.load(LAST, weights_only=True)["global_step"] == step + 2
    assert not list(RUN.rglob("*.part"))


def test_a_full_disk_is_one_line_and_the_old_file_stays(train, monkeypatch: pytest.MonkeyPatch) -> None:
    train("--max_epochs", 1)
    before = LAST.read_bytes()
    full = Path(f"{LAST}.part")
    monkeypatch.setattr(toys.Net, "each_forward", lambda self: full.is_symlink() or full.symlink_to("/dev/full"))
    with pytest.raises(
        SystemExit, match=r"cannot save .*last\.ckpt: No space left.* MiB are free there; still safe: best"
    ):
        main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    assert LAST.read_bytes() == before
    assert not full.is_symlink()


def test_a_quota_is_one_line_and_the_old_file_stays(train, monkeypatch: pytest.MonkeyPatch) -> None:
    train("--max_epochs", 1, "--logger", "csv")
    before = LAST.read_bytes()
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    quota = (len(before) - 1000, allowed[1])
    monkeypatch.setattr(toys.Net, "each_forward", lambda self: resource.setrlimit(resource.RLIMIT_FSIZE, quota))
    try:
        with pytest.raises(SystemExit, match=r"cannot save .*last\.ckpt: File too large; .* still safe: best-.*, last"):
            main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert LAST.read_bytes() == before


def test_a_killed_worker_ends_the_run(train, monkeypatch: pytest.MonkeyPatch) -> None:
    home = os.getpid()
    monkeypatch.setattr(toys.Blobs, "__getitem__", lambda *_: os.getpid() == home or os.kill(os.getpid(), 9))
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        train("--num_workers", 2)


def test_a_folder_that_cannot_be_written_is_found_at_the_start(train) -> None:
    Path("file").touch()
    with pytest.raises(SystemExit, match="cannot write to file/lightning_logs: Not a directory"):
        train("--default_root_dir", "file")


def test_last_passes_over_a_broken_file(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1)
    LAST.write_bytes(LAST.read_bytes()[:1000])
    main.main(["test", "--ckpt_path", "last"])
    told = capsys.readouterr()
    assert "skipped lightning_logs/version_0/checkpoints/last.ckpt" in told.err
    assert "from lightning_logs/version_0/checkpoints/best-" in told.out


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize("action", ["fit", "validate", "test", "predict", "export"])
def test_a_strangers_checkpoint_runs_no_code(train, action, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1)
    torch.save({**torch.load(LAST, weights_only=True), "bomb": Bomb()}, LAST)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(SystemExit, match="2"):
        main.main([action, "--ckpt_path", str(LAST)])
    assert "last.ckpt is refused: it holds" in capsys.readouterr().err
    assert not Path("pwned").exists()


def test_a_gradient_that_is_no_number_stops_before_the_weights_change(train, monkeypatch: pytest.MonkeyPatch) -> None:
    there = r"; 8 values of the batch's inputs are NaN or infinite\. The weights"
    monkeypatch.setattr(toys.Blobs, "__getitem__", lambda self, index: (torch.tensor([float("nan"), 0.0]), 0))
    with pytest.raises(FloatingPointError, match=r"step 0 \(epoch 1, batch 0\).* network\.layers\.0\.weight") as caught:
        train("--num_sanity_val_steps", 0, "--batch_size", 8)
    assert re.search(there, str(caught.value))
    kept = torch.load(RUN / "bad_step_0.pt", weights_only=True)
    assert str(RUN / "bad_step_0.pt") in str(caught.value)
    assert kept["batch"][0].isnan().any()
    assert not any(weight.isnan().any() for weight in kept["state_dict"].values())


def test_bad_steps_can_be_skipped_and_counted(train, monkeypatch: pytest.MonkeyPatch) -> None:
    good = toys.Blobs.__getitem__

    def sometimes(self: toys.Blobs, index: int) -> tuple[torch.Tensor, int]:
        return (torch.tensor([float("nan"), 0.0]), 0) if index == 5 else good(self, index)

    monkeypatch.setattr(toys.Blobs, "__getitem__", sometimes)
    train("--max_epochs", 3, "--bad_steps", "skip", "--val_fraction", 0, "--test_fraction", 0, "--batch_size", 8)
    weights = torch.load(LAST, weights_only=True)["state_dict"]
    assert not any(weight.isnan().any() for weight in weights.values())
    rows = [line for line in (RUN / "metrics.csv").read_text().splitlines() if line]
    column = rows[0].split(",").index("skipped_steps")
    assert [row.split(",")[column] for row in rows[1:] if row.split(",")[column]] == ["1", "2", "3"]


def test_three_ways_on_from_a_checkpoint(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 2, "--lr", 0.05)
    told = train("--init_from", LAST, "--max_epochs", 1, "--lr", 0)
    assert told["val_loss"] == pytest.approx(main.main(["validate", "--ckpt_path", str(LAST)])["val_loss"])
    named = train("--init_from", "version_0", "--max_epochs", 1, "--lr", 0)
    assert named["val_loss"] == pytest.approx(main.main(["validate", "--ckpt_path", "version_0"])["val_loss"])
    whole = torch.load(LAST, weights_only=True)["state_dict"]
    torch.save({name.removeprefix("network."): one for name, one in whole.items()}, "weights.pt")
    assert train("--init_from", "weights.pt", "--max_epochs", 1, "--lr", 0) == told
    with pytest.raises(SystemExit, match="2"):
        train("--init_from", LAST, "--hidden_dim", 16)
    assert "network.layers.0.bias is (16,) here and (8,) there (3 in all" in capsys.readouterr().err
    train("--init_from", LAST, "--hidden_dim", 16, "--init_partial", "--max_epochs", 1)


def test_weights_alone_are_measured_exported_and_predict(capsys: pytest.CaptureFixture[str]) -> None:
    network = toys.Net(num_features=2, num_classes=3).eval()
    torch.save(network.state_dict(), "plain.pt")
    argv = [*TOYS, "--noise", "0", "--init_from", "plain.pt"]  # each split has as many items of each class
    points, classes = zip(*(toys.Blobs(noise=0)[index] for index in range(3)), strict=True)
    output, classes = network(torch.stack(points)).detach(), torch.tensor(classes)
    told = main.main(["test", *argv])
    assert told["test_loss"] == pytest.approx(torch.nn.functional.cross_entropy(output, classes).item())
    assert told["test_acc"] == pytest.approx((output.argmax(1) == classes).float().mean().item())
    main.main(["predict", *argv])
    rows = list(csv.DictReader(Path("lightning_logs/version_1/predictions.csv").read_text().splitlines()))
    assert {int(row["true"]): float(row["p0"]) for row in rows} == pytest.approx(
        dict(zip(classes.tolist(), output.softmax(1)[:, 0].tolist(), strict=True)), abs=1e-5
    )
    main.main(["export", *argv])
    exported = torch.export.load("lightning_logs/version_2/network.pt2").module()
    assert torch.allclose(exported(torch.stack(points)), output, atol=1e-5)
    assert Path("lightning_logs/version_0/config.yaml").exists()
    for action, flag, said in (
        ("test", "--ckpt_path", "plain.pt names no network: of weights alone give --init_from"),
        ("consolidate", "--init_from", "consolidate takes --ckpt_path, a sharded checkpoint"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main.main([action, *TOYS, flag, "plain.pt"])
        assert said in capsys.readouterr().err


def test_a_moved_checkpoint_goes_on_in_a_new_folder(train, tmp_path: Path) -> None:
    train("--max_epochs", 1, "--lr", 0)
    moved = LAST.rename(tmp_path / "moved.ckpt")
    assert "test_acc" in main.main(["--ckpt_path", str(moved), "--max_epochs", "2"])
    assert Path("lightning_logs/version_1/checkpoints/last.ckpt").exists()


def test_in_mid_epoch_the_batch_size_cannot_change(train, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(self: toys.Net) -> None:
        if LAST.exists() and not Path("mid.ckpt").exists():
            shutil.copy(LAST, "mid.ckpt")

    monkeypatch.setattr(toys.Net, "each_forward", keep)
    train("--max_epochs", 2, "--batch_size", 16, "--every_n_train_steps", 1)
    shutil.copy("mid.ckpt", LAST)
    files = [Path("lightning_logs/version_0", name) for name in ("config.yaml", "metrics.csv")]
    before = [path.read_bytes() for path in files]
    with pytest.raises(SystemExit, match="2"):
        main.main(["--ckpt_path", "last", "--batch_size", "8"])
    assert [path.read_bytes() for path in files] == before  # or it would be refused again, and rows would be lost
    assert "stopped within an epoch of --batch_size 16 on 1 device: go on with these until" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main.main(["--ckpt_path", "last", "--balanced"])
    assert "stopped within an epoch of --no-balanced: go on with that until" in capsys.readouterr().err
    main.main(["--ckpt_path", "last"])
    main.main(["--ckpt_path", "last", "--batch_size", "8", "--max_epochs", "3"])


REFUSED = [
    (["test", "--hidden_dim", "16"], "--hidden_dim 16: the checkpoint was made with 8, and its network cannot change"),
    (
        ["test", "--model_name", "torch.nn.Linear"],
        "--model_name torch.nn.Linear: the checkpoint was made with toys",
    ),
    (
        ["fit", "--dataset", "toys.Stream"],
        "--dataset toys.Stream: the checkpoint was made with toys.Bl",
    ),
    (["test", "--seed", "3"], "--seed 3: the checkpoint was made with 0, and the splits of its data cannot"),
    (
        ["fit", "--lr", "0.5"],
        "made with 0.002, and its optimiser's state cannot change; --init_from in place of --ckpt",
    ),
]


@pytest.mark.parametrize(("argv", "line"), REFUSED)
def test_beside_a_checkpoint_some_flags_cannot_change(train, capsys, argv: list[str], line: str) -> None:
    train("--max_epochs", 1)
    assert "test_acc" in main.main(["test", "--ckpt_path", "last", "--batch_size", "3"])
    with pytest.raises(SystemExit, match="2"):
        main.main([*argv, "--ckpt_path", "last"])
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_item_is_named(train, workers: int) -> None:
    with pytest.raises(ValueError, match="item 71 is broken") as caught:
        train("--broken_item", 71, "--num_workers", workers)
    assert "while fetching item 71 of Blobs" in str(caught.value) + str(getattr(caught.value, "__notes__", ""))


def test_a_wrong_label_is_named(train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys.Blobs, "num_classes", 2)
    with pytest.raises(ValueError, match="item 2 of Blobs is of class 2, not 0 to 1"):
        train()


@pytest.mark.parametrize("items", [1, 2, 3, 4])
def test_almost_no_data(train, items: int) -> None:
    assert "train_loss" in train("--num_items", items, "--max_epochs", 1)


@pytest.mark.slow
def test_a_warned_slurm_job_requeues_itself_and_goes_on(
    start, train, warm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = Path("bin/scontrol")
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" > asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent.absolute()}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    run = start("--max_epochs", "100", python=warm_python)
    os.kill(run.pid, signal.SIGUSR1)
    assert run.wait(timeout=900) == 128 + signal.SIGUSR1, Path("err").read_text()[-2000:]
    assert Path("asked").read_text() == "requeue 77\n"
    assert torch.load(LAST, weights_only=True)["epoch"] < 99
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train("--max_epochs", 1)  # another run of the same job
    assert "val_loss" in train("--max_epochs", 100000, "--max_epochs", 100)
    assert torch.load(LAST, weights_only=True)["epoch"] == 99
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["version_0", "version_1"]


@pytest.mark.slow
def test_two_processes_killed_go_on_to_the_same_end(start, ranks, warm_python: str) -> None:
    argv = ["--dataset", "toys.Slow", "--max_epochs", "3", "--batch_size", "8", "--every_n_train_steps", "1"]
    Path("slow").touch()
    run = start(*argv, *TWO, python=warm_python)
    time.sleep(0.3)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(timeout=900)
    assert torch.load(LAST, weights_only=True)["epoch"] < 2
    Path("slow").unlink()
    ranks("--ckpt_path", str(RUN))
    ranks(*TOYS, *argv, "--default_root_dir", "whole")
    whole, killed = (torch.load(Path(root, LAST), weights_only=True)["state_dict"] for root in ("whole", "."))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert Path("whole", RUN, "metrics.csv").read_text() == Path(RUN, "metrics.csv").read_text()


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_run_and_says_why(shell, warm_python: str) -> None:
    done = shell(*TOYS, "--broken_item", "71", *TWO, python=warm_python)
    assert done.returncode == 1
    assert "ValueError: item 71 is broken" in done.stderr


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_and_says_where(shell, warm_python: str) -> None:
    stuck = ["--stuck_item", "71", *TWO, "--hang_minutes", "0.3"]
    done = shell(*TOYS, *stuck, python=warm_python)
    assert done.returncode == 1
    said = re.search(
        r"rank 1: no progress for 0.\d minutes \(--hang_minutes 0.3\); stack:\n(.*?)\n\n",
        done.stderr + "\n\n",
        re.DOTALL,
    )
    assert said
    assert "time.sleep(1000)" in said[1]
