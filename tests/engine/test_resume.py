"""A run that was killed and goes on ends as the run that was not, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import main
import pytest
import torch
import toys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

KINDS = {
    "mid-epoch checkpoints": ["--every_n_train_steps", "2", "--x_axis", "both"],
    "accumulation": ["--every_n_train_steps", "1", "--accumulate_grad_batches", "2"],
    "validation within the epoch": ["--every_n_train_steps", "1", "--val_check_interval", "0.5"],
    "an end by steps": ["--max_steps", "13", "--every_n_train_steps", "2"],
    "plateau": ["--lr_scheduler", "plateau", "--every_n_train_steps", "3"],
    "linear with warm-up": ["--lr_scheduler", "linear", "--warmup_steps", "4", "--every_n_train_steps", "1"],
    "constant and SGD": ["--lr_scheduler", "constant", "--optimizer", "SGD"],
    "early stopping": ["--patience", "1", "--lr", "0.3", "--every_n_train_steps", "1"],
    "workers": ["--num_workers", "2", "--every_n_train_steps", "2"],
    "averaged weights": ["--ema_decay", "0.9", "--every_n_train_steps", "2"],
    "balanced": ["--balanced", "--every_n_train_steps", "2"],
    "accumulation across validation": [
        *["--accumulate_grad_batches", "2", "--val_check_interval", "3", "--every_n_train_steps", "1"]
    ],
    "a stream without a length": [
        *["--dataset", "toys.Endless", "--lr_scheduler", "constant", "--every_n_train_steps", "1"]
    ],
    "a stream without a state": ["--dataset", "toys.Forgetful", "--every_n_train_steps", "1"],
    "a stream with a state": ["--dataset", "toys.Stream", "--every_n_train_steps", "1"],
}
QUICK = ("mid-epoch checkpoints", "early stopping", "accumulation")


def everything(run: Path) -> dict[str, Any]:
    """What a run leaves: weights, optimiser, schedules, callbacks, and every logged row."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    kept = {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}
    best = sorted(path.name for path in (run / "checkpoints").iterdir())
    return {**kept, "rows": (run / "metrics.csv").read_text().splitlines(), "files": best}


def points(run: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a run, and that it shows no step twice."""
    for path in run.glob("events.*"):  # read in the order of their names, which end in a number
        head, _, number = path.name.rpartition(".")
        path.rename(run / f"{head}.{int(number):06}")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - {"epoch"}  # the test has the number of the epoch that would follow
    curves = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags}
    for tag, curve in curves.items():
        assert len(dict(curve)) == len(curve), tag
    return {tag: dict(curve) for tag, curve in curves.items()}


def same(one: Any, other: Any, at: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for key in one:
            same(one[key], other[key], f"{at}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), f"{at}: {one} {other}"
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            same(left, right, f"{at}/{place}")
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, f"{at}: {one} {other}"


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_killed_anywhere_it_ends_the_same(kind: str, train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shots = tmp_path / "shots"
    monkeypatch.setattr(toys.Net, "each_forward", lambda self: shutil.copytree("lightning_logs", _next(shots)))
    told = train("--batch_size", 16, "--max_epochs", 3, *KINDS[kind])
    monkeypatch.setattr(toys.Net, "each_forward", lambda self: None)
    wanted = everything(Path("lightning_logs/version_0"))
    usable = [shot for shot in shots.iterdir() if list(shot.glob("*/checkpoints/last.ckpt"))]
    usable.sort(key=lambda path: int(path.name))
    for shot in usable[:: max(1, len(usable) // 7)]:  # each one is a moment at which the run might have been killed
        (shot / "here").mkdir()
        shutil.move(shot / "version_0", shot / "here" / "lightning_logs" / "version_0")
        monkeypatch.chdir(shot / "here")
        assert main.main(["--ckpt_path", "last"]) == told, shot.name
        same(everything(Path("lightning_logs/version_0")), wanted, shot.name)
        assert points(Path("lightning_logs/version_0")) == points(tmp_path / "lightning_logs" / "version_0")


def _next(shots: Path) -> Path:
    shots.mkdir(exist_ok=True)
    return shots / str(len(list(shots.iterdir())))
