"""What may change when a run goes on: it goes on as if it had been so from there, or says that it cannot."""

import csv
import json
import math
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import main
import plain_loop
import pytest
import torch
import toys
from engine.checkpointing.find_checkpoint import find_checkpoint
from paths import TOYS
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import Checkpoint
from test_resume import everything, same
from torch import Tensor, nn

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def column(name: str) -> list[float]:
    with (RUN / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def kept() -> dict[str, Any]:
    return torch.load(LAST, weights_only=True)


def resume(*argv: str | float) -> dict[str, float]:
    return main.main(["--ckpt_path", "last", *map(str, argv)])


def cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


# 72 items: 5 steps an epoch at 16 a batch, 3 at 32, 9 at 8. Two epochs are done; the rate of each step of the third.
RATES = {
    "--batch_size 32 --max_epochs 4": [cosine(epoch / 4) for epoch in (2, 7 / 3, 8 / 3)],
    "--batch_size 8 --max_epochs 4": [cosine((2 + step / 9) / 4) for step in range(9)],
    "--accumulate_grad_batches 2 --max_epochs 4": [cosine((2 + step / 3) / 4) for step in range(3)],
    "--max_epochs 3": [cosine((2 + step / 5) / 3) for step in range(5)],
    "--max_epochs 4 --max_steps 20": [cosine((10 + step) / 20) for step in range(5)],
    "--batch_size 32 --max_epochs -1 --max_steps 16": [cosine((2 + step / 3) / 4) for step in range(3)],
}


@pytest.mark.parametrize("change", RATES)
def test_the_rate_follows_the_share_of_training_that_is_done(train, change: str) -> None:
    argv = ["--batch_size", 16, "--lr", 1, "--optimizer", "SGD", "--log_every_n_steps", 1, "--logger", "csv"]
    train("--max_epochs", 2, *argv)
    resume(*change.split())
    assert column("lr")[10 : 10 + len(RATES[change])] == pytest.approx(RATES[change], abs=1e-6)


def test_a_warm_up_counts_the_steps_that_are_taken() -> None:
    argv = ["--batch_size", 16, "--lr", 1, "--optimizer", "SGD", "--log_every_n_steps", 1, "--logger", "csv"]
    argv = [*TOYS, "--max_epochs", "2", "--warmup_steps", "7", "--lr_scheduler", "linear", *map(str, argv)]
    with pytest.raises(InterruptedError):
        main.main(argv, [Stop(before=5)])
    resume("--batch_size", 32, "--max_epochs", 3)  # the warm-up ends after 1 2/3 epochs
    assert column("lr")[5:] == pytest.approx([6 / 8, 7 / 8, 1, 0.75, 0.5, 0.25], abs=1e-6)


class Stop(Callback):
    """Asks to stop, as max_time does, or ends the run, before or after the batch of a number."""

    def __init__(self, after: int = -1, before: int = -1) -> None:
        self.after, self.before = after, before

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.before:
            raise InterruptedError

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop |= trainer.fit_loop.total_batch_idx == self.after


# What ends a run of 5 batches an epoch within an epoch, and the flags with which it goes on.
ENDS: dict[str, tuple[list[object], int, list[object]]] = {
    "steps": (["--max_steps", 7], -1, ["--max_steps", -1]),
    "fewer steps": (["--max_steps", 7], -1, ["--max_steps", 12]),
    "time": ([], 6, []),
    "time, between batches whose gradients accumulate": (["--accumulate_grad_batches", 2], 7, []),
    "time, and a validation that it brings": (["--val_check_interval", 0.4], 7, []),
    "patience": (["--val_check_interval", 0.4, "--patience", 1, "--lr", 0], -1, ["--patience", 50]),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_run_that_ended_within_an_epoch_goes_on_as_if_it_had_not(name: str) -> None:
    end, after, change = ENDS[name]
    argv = [*TOYS, "--batch_size", "16", "--max_epochs", "4", "--lr_scheduler", "constant"]
    main.main([*argv, *map(str, end)], [Stop(after)])
    assert 0 < kept()["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] < 5
    told = resume(*change)
    assert main.main([*argv, *map(str, end), *map(str, change)]) == told
    same(everything(RUN), everything(RUN.with_name("version_1")))
    assert kept()["global_step"] == {"fewer steps": 12}.get(name, 12 if "accumulate" in name else 20)


class Normed(nn.Module):
    """Layers with batch norms, of which one learns nothing."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(num_features, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8, affine=False)
        )
        self.head = nn.Linear(8, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        return self.head(self.body(points))


FEATURES = {
    "freeze": ["--freeze", "body"],
    "unfreeze_epoch": ["--freeze", "body", "--unfreeze_epoch", "2"],
    "ema": ["--ema_decay", "0.9"],
    "swa": ["--swa_epoch", "2"],
    "l1": ["--l1", "0.01"],
    "logged": ["--throughput", "--monitor_device", "--histograms", "--summary_depth", "2"],
    "patience": ["--patience", "2", "--lr", "0.3", "--bad_steps", "skip"],
    "plateau": ["--lr_scheduler", "plateau", "--lr", "0.3", "--val_check_interval", "0.4"],
}
TIMES = ("items_per_second", "cpu_", "DeviceStats")


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_goes_on_within_an_epoch_as_if_never_cut_off(name: str) -> None:
    argv = [*TOYS, "--model_name", "test_changes.Normed", "--batch_size", "16", "--max_epochs", "4"]
    argv += ["--every_n_train_steps", "1", *FEATURES[name]]
    told = main.main(argv)
    with pytest.raises(InterruptedError):
        main.main(argv, [Stop(before=8)])
    assert main.main(["--ckpt_path", "version_1"]) == told
    runs = [everything(run) | {"callbacks": states(run)} for run in (RUN, RUN.with_name("version_1"))]
    for run in runs:
        run["rows"] = [] if name == "logged" else run["rows"]
    same(*runs)
    if name == "freeze":
        body = kept()["state_dict"]
        assert torch.equal(body["network.body.3.running_mean"], torch.zeros(8))
        assert body["network.body.1.num_batches_tracked"] == 0


def states(run: Path) -> dict[str, Any]:
    """The state of each callback, without folders and times."""
    found = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    found.pop("Throughput", None)
    for state in found.values():
        for key in ("dirpath", "time_elapsed"):
            state.pop(key, None)
        for key, value in state.items():
            if key.endswith("model_path"):
                state[key] = Path(value).name
        if "best_k_models" in state:
            state["best_k_models"] = {Path(path).name: score for path, score in state["best_k_models"].items()}
    return found


def test_a_longer_patience_counts_and_without_it_a_run_that_has_stopped_is_done(train, capsys) -> None:
    train("--max_epochs", 9, "--patience", 2, "--lr", 0)
    assert "stopped early: the best val_loss is" in capsys.readouterr().out
    resume()
    assert "and 2 validations since were no better; to go on, give a longer --patience" in capsys.readouterr().out
    assert kept()["epoch"] == 2
    resume("--patience", 5)
    assert kept()["epoch"] == 5


def test_with_another_metric_the_best_is_found_anew(train, capsys) -> None:
    train("--max_epochs", 2, "--lr", 0.02)
    resume("--max_epochs", 4, "--monitor", "val_acc")
    assert (
        "the best checkpoint is found anew, by val_acc (max): until now it was by val_loss" in capsys.readouterr().out
    )
    best = kept()["callbacks"]["BestCheckpoint"]
    assert float(best["best_model_score"]) == max(column("val_acc")[2:])
    assert "val_acc" in best["best_model_path"]
    assert "val_acc=" in str(find_checkpoint("best", RUN.parent, resume=False))


def test_fewer_best_checkpoints_are_kept_when_fewer_are_asked_for(train) -> None:
    train("--max_epochs", 4, "--save_top_k", 3, "--lr", 0.02)
    resume("--max_epochs", 6, "--save_top_k", 1)
    files = sorted(path.name for path in (RUN / "checkpoints").iterdir())
    losses = column("val_loss")
    assert files == [f"best-epoch{losses.index(min(losses)) + 1}-val_loss={min(losses):.6f}.ckpt", "last.ckpt"]


@pytest.mark.parametrize(
    ("average", "change"), [("--ema_decay 0.9", "--ema_decay none"), ("--swa_epoch 1", "--swa_epoch none")]
)
def test_without_an_average_the_trained_weights_go_on(train, capsys, average: str, change: str) -> None:
    argv = [*TOYS, "--max_epochs", "3", "--lr", "0.05", *average.split()]
    with pytest.raises(InterruptedError):
        main.main(argv, [Stop(before=4)])  # after two epochs
    resume(*change.split())
    assert "goes on with the trained weights, not with their average" in capsys.readouterr().out
    ended = kept()["state_dict"]
    train("--max_epochs", 3, "--lr", 0.05)
    same(ended, torch.load(Path("lightning_logs/version_1/checkpoints/last.ckpt"), weights_only=True)["state_dict"])


def test_another_average_begins_with_the_trained_weights(train) -> None:
    with pytest.raises(InterruptedError):
        main.main([*TOYS, "--max_epochs", "3", "--lr", "0.05", "--ema_decay", "0.9"], [Stop(before=4)])
    resume("--ema_decay", "none", "--swa_epoch", 3)  # the mean of the last epoch alone: its weights
    ended = kept()["state_dict"]
    train("--max_epochs", 3, "--lr", 0.05)
    same(ended, torch.load(Path("lightning_logs/version_1/checkpoints/last.ckpt"), weights_only=True)["state_dict"])


@pytest.mark.parametrize(("frozen", "change"), [(["--freeze", "layers.0"], "[]"), ([], "layers.0")])
def test_what_is_frozen_cannot_change_and_no_file_says_so(train, capsys, frozen: list[str], change: str) -> None:
    train("--max_epochs", 1, *frozen)
    files = [RUN / "config.yaml", RUN / "metrics.csv", *RUN.glob("events.out*")]
    before = [path.read_bytes() for path in files]
    with pytest.raises(SystemExit, match="2"):
        resume("--max_epochs", 2, "--freeze", change)
    was = "layers.0" if frozen else "[]"
    assert f"--freeze {change}: the checkpoint was made with {was}" in capsys.readouterr().err
    assert [path.read_bytes() for path in files] == before


class BestIsWritten(Checkpoint):
    """Keeps the run folder as it is when the best checkpoint is written and last.ckpt is not."""

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            shutil.copytree("lightning_logs", Path("shots", str(trainer.global_step), "lightning_logs"))


@pytest.mark.parametrize("name", [[], ["--patience", "2"], ["--save_top_k", "2"], ["--monitor", "val_acc"]])
def test_killed_between_the_best_checkpoint_and_the_last(name: list[str], monkeypatch) -> None:
    argv = [*TOYS, "--batch_size", "16", "--max_epochs", "4", "--lr", "0.1", *name]
    told = main.main(argv, [BestIsWritten()])
    wanted = everything(RUN) | {"callbacks": states(RUN)}
    for shot in sorted(Path("shots").absolute().iterdir()):
        monkeypatch.chdir(shot)
        assert resume() == told
        same(everything(RUN) | {"callbacks": states(RUN)}, wanted, shot.name)


class Block(Callback):
    """Stays in the second epoch for ever."""

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            Path("blocked").touch()
            time.sleep(1000)


def begin_and_block(argv: list[str]) -> int:
    """Starts a run in another process, which stays in its second epoch; its number."""
    if not (child := os.fork()):
        try:
            main.main(argv, [Block()])
        finally:
            os._exit(1)
    while not Path("blocked").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it has not ended
        time.sleep(0.05)
    return child


def test_two_processes_never_train_one_run_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    child = begin_and_block([*TOYS, "--max_epochs", "2"])
    try:
        with pytest.raises(SystemExit, match="2"):
            resume()
        assert f"{RUN} is being trained by process {child}: wait for its end" in capsys.readouterr().err
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
    resume()
    os.waitpid(child, 0)
    assert kept()["epoch"] == 1
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]


def test_a_job_that_starts_again_on_another_host_takes_its_run_over(monkeypatch, capsys) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    argv = [*TOYS, "--max_epochs", "2"]
    os.kill(child := begin_and_block(argv), signal.SIGKILL)
    os.waitpid(child, 0)
    [claim] = RUN.with_name(".version_0.lock").iterdir()
    claim.rename(claim.with_name(claim.name.replace(socket.gethostname(), "elsewhere")))
    with pytest.raises(SystemExit, match="2"):
        resume()
    assert f"process {child} on elsewhere: wait for its end, or stop it; if that has died" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    main.main(argv)
    assert kept()["epoch"] == 1
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]


def test_a_metric_that_is_nan_is_said_and_is_never_the_best(train, capsys, monkeypatch) -> None:
    class Broken(Callback):
        """A network that gives NaN in the second epoch's validation."""

        def on_validation_start(self, trainer: Any, module: Any) -> None:
            value = math.nan if trainer.current_epoch == 1 and not trainer.sanity_checking else 1.0
            monkeypatch.setattr(toys.Net, "forward", lambda self, points: value * self.layers(points))

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            monkeypatch.setattr(toys.Net, "forward", lambda self, points: self.layers(points))

    argv = [*TOYS, "--max_epochs", "3", "--lr", "0.02", "--save_top_k", "-1"]
    with pytest.raises(FloatingPointError, match=r"val_loss is NaN after step 4 \(epoch 2\); with --bad_steps skip"):
        main.main([*argv, "--patience", "5"], [Broken()])
    main.main([*argv, "--patience", "1", "--bad_steps", "skip"], [Broken()])
    said = capsys.readouterr().out
    assert "val_loss is NaN after step 4 (epoch 2), which counts as no better" in said
    assert "stopped early: the best val_loss is" in said
    main.main(argv, [Broken()])
    names = sorted(path.name for path in Path("lightning_logs/version_2/checkpoints").iterdir())
    assert [name[:12] for name in names] == ["best-epoch1-", "best-epoch3-", "last.ckpt"]
    assert find_checkpoint("version_2", RUN.parent, resume=False).name == names[1]


def test_the_best_of_tiny_losses_is_told_by_the_number_in_the_checkpoint(train) -> None:
    train("--max_epochs", 3, "--save_top_k", -1, "--model_name", "test_changes.Tiny", "--lr", 0.5, "--noise", 0)
    losses = column("val_loss")
    assert max(losses) < 5e-7
    best = find_checkpoint("best", RUN.parent, resume=False)
    assert best.name.startswith(f"best-epoch{losses.index(min(losses)) + 1}-")


class Tiny(nn.Module):
    """Answers that are right, and so sure that the loss is next to nothing, and each epoch another."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(15.0))
        self.num_classes = num_classes

    def forward(self, points: Tensor) -> Tensor:
        centres = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
        right = torch.cdist(points, centres).argmin(1)
        return self.scale * nn.functional.one_hot(right, self.num_classes) + 0 * points.sum()


# 81 items. Flags, the batch before which the run is cut off, the flags that change, and what becomes of it.
DEVICES: dict[str, tuple[dict[str, Any], int, dict[str, Any], str]] = {
    "two at the end of an epoch": ({"every_n_train_steps": None}, 8, {"devices": 2}, "same"),
    "one at the end of an epoch": ({"devices": 2, "every_n_train_steps": None}, 5, {"devices": 1}, "same"),
    "two within an epoch": ({}, 4, {"devices": 2, "batch_size": 8}, "same"),
    "one within an epoch": ({"devices": 2, "batch_size": 8}, 4, {"devices": 1, "batch_size": 16}, "same"),
    "two within an epoch, of more items a step": ({}, 4, {"devices": 2}, "refused"),
    "two before a last batch that has other items": ({}, 5, {"devices": 2, "batch_size": 8}, "refused"),
}


@pytest.mark.parametrize("name", DEVICES)
def test_other_devices_go_on_with_the_same_items(name: str, tmp_path: Path, monkeypatch) -> None:
    weights = plain_loop.first_weights()
    (tmp_path / "case").mkdir()
    monkeypatch.chdir(tmp_path / "case")
    flags, before, changed, wanted = DEVICES[name]
    assert plain_loop.compare(plain_loop.FIRST | flags, before, changed, weights) == wanted


class Chunked(toys.Blobs):
    """Points that lie in chunks of ten, which are read one after the other."""

    def order(self, generator: torch.Generator) -> Tensor:
        """The chunks in any order."""
        return torch.cat([chunk * 10 + torch.arange(10) for chunk in torch.randperm(9, generator=generator)])


@pytest.mark.parametrize("dataset", ["toys.Endless", "test_changes.Chunked"])
def test_within_an_epoch_whose_order_follows_from_the_devices_these_stay(dataset: str) -> None:
    argv = [*TOYS, "--dataset", dataset, "--batch_size", "8", "--every_n_train_steps", "1", "--max_epochs", "2"]
    with pytest.raises(InterruptedError):
        main.main([*argv, "--lr_scheduler", "constant"], [Stop(before=2)])
    told = plain_loop.run(["--ckpt_path", "last", "--devices", "2", "--batch_size", "4"], [], devices=2)
    assert told[0] == 2
    assert "the run stopped within an epoch of --batch_size 8 on 1 device: go on with these until" in told[1]


MEASURED = {
    "numbers": ("toys.Line", "toys.Numbers", "mse_loss", ["psnr", "r2"]),
    "classes": ("toys.Net", "plain_loop.Points", "cross_entropy", ["auroc", "averageprecision", "f1"]),
}


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("kind", MEASURED)
def test_what_is_measured_of_an_epoch_goes_on_with_other_devices(kind: str, before: int, after: int) -> None:
    network, dataset, loss, metrics = MEASURED[kind]
    argv = [*TOYS, "--model_name", network, "--dataset", dataset, "--loss", loss, "--max_epochs", "1"]
    argv += ["--dropout", "0"] if kind == "classes" else []
    argv += [
        "--every_n_train_steps",
        "1",
        "--num_items",
        "100",
        "--test_fraction",
        "0",
    ]  # 5 batches of 16 and one of 10
    wanted = main.main([*argv, "--batch_size", "16", "--metrics", *metrics])

    def go_on(*metrics: str) -> tuple[int, str]:
        first = [*argv, "--metrics", *metrics, "--devices", str(before), "--batch_size", str(16 // before)]
        assert plain_loop.run(first, [Stop(before=3)], before)[0] == 0
        second = ["--ckpt_path", "last", "--devices", str(after), "--batch_size", str(16 // after)]
        return plain_loop.run(second, [], after)

    assert go_on(*metrics)[0] == 0
    told = json.loads(Path("lightning_logs/version_1/metrics.json").read_text())
    assert told == pytest.approx(wanted, rel=1e-4)
    if (kind, before, after) == ("numbers", 2, 1):
        status, said = go_on("pearsoncorrcoef")
        assert status == 2
        assert "train_pearsoncorrcoef of this epoch is on 2 devices: go on with these until its end" in said


@pytest.mark.parametrize("number", range(6))
def test_a_change_at_random_ends_where_a_plain_loop_ends(number: int, tmp_path: Path, monkeypatch) -> None:
    weights = plain_loop.first_weights()
    (tmp_path / "case").mkdir()
    monkeypatch.chdir(tmp_path / "case")
    assert plain_loop.check(number, weights) in ("same", "refused", "nothing saved")
