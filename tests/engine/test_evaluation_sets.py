"""Several validation and test sets: each is measured exactly, under its own name, and a run that goes on keeps that."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import main
import pytest
import torch
from model import MInterface
from paths import TOYS
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import LambdaCallback
from test_own_systems import RUN, kill, rows  # noqa: F401  # a fixture
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy


class Points(Dataset):
    """Points around three centres that are the same at each fetch."""

    num_classes, num_features = 3, 2

    def __init__(self, num_items: int, noise: float, seed: int = 0) -> None:
        centres = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
        self.targets = torch.arange(num_items) % 3
        self.points = centres[self.targets]
        self.points = self.points + noise * torch.randn(num_items, 2, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.targets[index]


class Clean(Points):
    """Some with little noise, and sets of other noise beside them."""

    hard_items = 37

    def __init__(self) -> None:
        super().__init__(90, 0.3)

    def val_sets(self) -> dict[str, Dataset]:
        return {"hard": Points(self.hard_items, 3.0, seed=1), "one": Points(1, 1.0)}

    def test_sets(self) -> dict[str, Dataset]:
        return {"far": Points(53, 4.0, seed=2)}


DATA = ["--dataset", f"{__name__}.Clean", "--batch_size", "8", "--max_epochs", "3", "--lr", "0.05"]


def plain_loop(checkpoint: Path, dataset: Points) -> tuple[float, float]:
    """Loss and accuracy of a checkpoint's weights on a dataset."""
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    layers = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Identity(), nn.Linear(8, 3))
    layers.load_state_dict({name.removeprefix("network.layers."): value for name, value in weights.items()})
    with torch.no_grad():
        logits = layers(dataset.points)
    right = (logits.argmax(1) == dataset.targets).double().mean()
    return float(cross_entropy(logits, dataset.targets)), float(right)


def test_each_set_is_measured_by_itself(train) -> None:
    told = train(*DATA, "--monitor", "val_hard_acc", "--patience", 2)
    last, best = RUN / "checkpoints" / "last.ckpt", next(RUN.glob("checkpoints/best-*-val_hard_acc=*.ckpt"))
    for name, dataset in {"val_hard": Points(37, 3.0, 1), "val_one": Points(1, 1.0)}.items():
        assert (told[f"{name}_loss"], told[f"{name}_acc"]) == pytest.approx(plain_loop(last, dataset))
    assert (told["test_far_loss"], told["test_far_acc"]) == pytest.approx(plain_loop(best, Points(53, 4.0, 2)))
    assert told["best_val_hard_acc"] == pytest.approx(plain_loop(best, Points(37, 3.0, 1))[1])
    assert max(rows("val_hard_acc")) == pytest.approx(told["best_val_hard_acc"])
    assert len(rows("val_acc")) == len(rows("val_hard_loss")) == 3
    alone = main.main([*TOYS, *DATA, "--dataset", f"{__name__}.Points", "--num_items", "90", "--noise", "0.3"])
    assert {name: told[name] for name in ("train_loss", "val_loss", "val_acc")} == {
        name: alone[name] for name in ("train_loss", "val_loss", "val_acc")
    }  # neither the training nor the set without a name has changed


def test_a_killed_run_goes_on(kill) -> None:  # noqa: F811
    told = kill(*DATA, "--monitor", "val_hard_acc", "--val_check_interval", 5, "--every_n_train_steps", 1)
    assert "val_hard_loss" in told


def test_two_processes_measure_the_same(train, ranks) -> None:
    train(*DATA, "--max_epochs", 1)
    told = main.main(["validate", "--ckpt_path", "last"])
    ranks("validate", "--ckpt_path", "last", "--accelerator", "cpu")
    found = json.loads((RUN / "metrics.json").read_text())  # the second process has no item of val_one
    assert {name: found[name] for name in told} == pytest.approx(told)


def test_without_a_validation_split(train) -> None:
    told = train(*DATA, "--val_fraction", 0, "--monitor", "val_hard_loss", "--patience", 5)
    assert "val_loss" not in told
    assert told["val_hard_loss"] == pytest.approx(plain_loop(RUN / "checkpoints/last.ckpt", Points(37, 3.0, 1))[0])
    assert min(rows("val_hard_loss")) == pytest.approx(told["best_val_hard_loss"])


def test_a_changed_set_is_refused(train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train(*DATA, "--max_epochs", 1)
    assert json.loads((RUN / "data.json").read_text())["splits"]["val_hard"]["items"] == 37
    monkeypatch.setattr(Clean, "hard_items", 36)
    with pytest.raises(SystemExit, match="2"):
        main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    assert "the val_hard split has 36 items, and had 37" in capsys.readouterr().err
    monkeypatch.setattr(Clean, "val_sets", lambda self: {"new": Points(7, 3.0, 1)})  # nothing was measured on it
    assert main.main(["--ckpt_path", "last", "--max_epochs", "2"])["val_new_acc"] <= 1


def test_a_signal_within_a_set(train) -> None:
    told = train(*DATA, "--default_root_dir", "whole", "--max_epochs", 2)

    def stop(trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if trainer.global_step > 10 and dataloader_idx == 1 and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        main.main([*TOYS, *DATA, "--max_epochs", "2"], [LambdaCallback(on_validation_batch_start=stop)])
    assert main.main(["--ckpt_path", "last"]) == told
    assert (RUN / "metrics.csv").read_text() == ("whole" / RUN / "metrics.csv").read_text()


class Idioms(MInterface):
    """A step of its own, with a metric that Lightning resets, one that the module resets, and a value of batches."""

    def __init__(self, num_features: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)
        self.logged, self.own = MulticlassAccuracy(3, average="micro"), MulticlassAccuracy(3, average="micro")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.step(batch, "val")
        self.logged(logits, batch[1])
        self.own.update(logits, batch[1])
        self.log("val_logged", self.logged)
        self.log("val_mean", (logits.argmax(1) == batch[1]).float().mean())

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("val_own", self.own.compute())
        self.own.reset()


def test_every_way_to_log_in_a_system_of_ones_own(train) -> None:
    told = train("--model_name", f"{__name__}.Idioms", *DATA, "--max_epochs", 2)
    for name in ("val", "val_hard", "val_one"):
        same = {told[f"{name}_{metric}"] for metric in ("acc", "logged", "own")} | {told[f"{name}_mean"]}
        assert max(same) == pytest.approx(min(same)), told
    assert told["val_acc"] != told["val_hard_acc"]


class Loaders(LightningDataModule):
    """A LightningDataModule with several loaders."""

    num_classes, num_features = 3, 2

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Points(60, 0.3), 8, shuffle=True)

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(Points(20, 0.3, 3), 8), DataLoader(Points(37, 3.0, 1), 8)]

    def test_dataloader(self) -> dict[str, DataLoader]:
        return {"test": DataLoader(Points(20, 0.3, 3), 8), "far": DataLoader(Points(53, 4.0, 2), 8)}


def test_the_loaders_of_a_lightning_data_module() -> None:
    told = main.main([*TOYS[:2], "--dataset", f"{__name__}.Loaders", "--max_epochs", "2", "--monitor", "val_1_acc"])
    last, best = RUN / "checkpoints/last.ckpt", next(RUN.glob("checkpoints/best-*.ckpt"))
    assert (told["val_loss"], told["val_acc"]) == pytest.approx(plain_loop(last, Points(20, 0.3, 3)))
    assert (told["val_1_loss"], told["val_1_acc"]) == pytest.approx(plain_loop(last, Points(37, 3.0, 1)))
    assert (told["test_far_loss"], told["test_far_acc"]) == pytest.approx(plain_loop(best, Points(53, 4.0, 2)))


class Slashed(Clean):
    """A name that is no part of a metric's name."""

    def val_sets(self) -> dict[str, Dataset]:
        return {"a/b": Points(3, 0.3)}


class Parted(MInterface):
    """A part of the loss that is called as the loss of a set is."""

    def __init__(self, num_features: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)
        self.metrics["val_hard_loss"] = MulticlassAccuracy(3)

    def step(self, batch: Any, stage: str) -> Tensor:
        if stage == "val":
            self.metrics["val_hard_loss"].update(self(batch[0]), batch[1])
        return super().step(batch, stage)


def test_names_that_cannot_be(train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(*DATA, "--dataset", f"{__name__}.Slashed")
    assert "val_sets: 'a/b' becomes part of a metric's name: take letters, digits and _" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        train(*DATA, "--model_name", f"{__name__}.Parted")
    assert "val_hard_loss is a metric of two val_sets: give one of them another name" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        train(*DATA, "--monitor", "val_hard_f1")
    assert "val_hard_acc" in capsys.readouterr().err


def test_preview_report_and_predict_know_them(train, capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["preview", *DATA[:2]])
    assert "val_hard" in capsys.readouterr().out
    train(*DATA, "--pictures")
    with pytest.raises(SystemExit, match="0"):
        main.main(["report", "version_0"])
    with open("report/report.csv") as file:
        assert {"val_acc", "val_hard_acc", "test_far_loss"} < next(csv.DictReader(file)).keys()
    main.main(["predict", "--ckpt_path", "best"])
    with (RUN / "predictions.csv").open() as file:
        assert len(list(file)) == 1 + 9  # the test split alone
