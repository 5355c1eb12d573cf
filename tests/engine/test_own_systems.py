"""Systems of a user's own: each trains, is killed anywhere and ends the same, and says all that it logs."""

import csv
import json
import re
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
from engine.datamodule.resumable_loader import ResumableLoader
from model import MInterface
from paths import TOYS
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.callbacks import LambdaCallback
from test_resume import everything, same
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, multi_margin_loss
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

RUN = Path("lightning_logs/version_0")
WITHOUT_WORKERS = TOYS[: TOYS.index("--num_workers")]  # a LightningDataModule has its own


@pytest.fixture
def kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """Trains with some flags; goes on from some of the moments at which the run might have been killed."""

    def run(*argv: str | int | float, shots: int = 4) -> dict[str, float]:
        folder = tmp_path / "shots"
        folder.mkdir()

        def shoot(*_: Any) -> None:
            shutil.copytree("lightning_logs", folder / f"{len(list(folder.iterdir())):04}" / "lightning_logs")

        told = main.main(
            [*(WITHOUT_WORKERS if OWN_DATA[1] in argv else TOYS), *map(str, argv)],
            [LambdaCallback(on_train_batch_start=shoot)],
        )
        wanted = everything(RUN)
        usable = [shot for shot in sorted(folder.iterdir()) if list(shot.rglob("last.ckpt"))]
        assert usable
        for shot in usable[:: max(1, len(usable) // shots)]:
            monkeypatch.chdir(shot)
            assert main.main(["--ckpt_path", "last"]) == told, shot.name
            same(everything(RUN), wanted, shot.name)
        monkeypatch.chdir(tmp_path)
        return told

    return run


def rows(name: str) -> list[float]:
    """The values of a column of metrics.csv."""
    with (RUN / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


class Logs(MInterface):
    """Logs as every tutorial does, and keeps what it logged to compare with."""

    seen: list[tuple[float, int]] = []

    def __init__(self, num_features: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)
        self.accuracy, self.f1 = MulticlassAccuracy(num_classes, average="micro"), MulticlassF1Score(num_classes)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        loss = cross_entropy(logits, batch[1])
        self.seen.append((loss.item(), len(batch[1])))
        self.log("train/ce", loss, on_step=True, on_epoch=True)
        self.log("train/least", loss, reduce_fx="min", on_step=False, on_epoch=True)
        self.accuracy(logits, batch[1])
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        if batch_idx == 0:
            self.log("train/first", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        self.f1.update(logits, batch[1])
        self.log_dict({"val/ce": cross_entropy(logits, batch[1]), "val/f1": self.f1})

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/ce", cross_entropy(self(batch[0]), batch[1]))


LOGS = [
    "--model_name",
    f"{__name__}.Logs",
    "--monitor",
    "val/ce",
    "--monitor_mode",
    "min",
    "--batch_size",
    16,
    "--max_epochs",
    3,
]


def test_what_is_logged_covers_the_whole_epoch_wherever_it_was_killed(kill) -> None:
    Logs.seen = []
    told = kill(*LOGS, "--every_n_train_steps", 1, "--log_every_n_steps", 2)
    epochs = [Logs.seen[start : start + 5] for start in (0, 5, 10)]  # 72 items in batches of 16
    means = [sum(loss * items for loss, items in epoch) / sum(items for _, items in epoch) for epoch in epochs]
    assert rows("train/ce_epoch") == pytest.approx(means, rel=1e-6)
    assert rows("train/least") == pytest.approx([min(loss for loss, _ in epoch) for epoch in epochs])
    assert len(rows("val/ce")) == len(rows("val/f1")) == 3
    assert told["train/ce"] == pytest.approx(means[-1], rel=1e-6)
    assert told["val/ce"] == rows("val/ce")[-1]
    assert {"train/accuracy", "val/f1", "test/ce"} <= told.keys()
    assert not {"train/ce_step", "train/ce_epoch"} & told.keys()


def test_a_metric_with_a_slash_is_no_folder(train, capsys: pytest.CaptureFixture[str]) -> None:
    told = train(*LOGS)
    printed = capsys.readouterr().out
    assert "train/ce " in printed
    assert not re.search("train/ce_(step|epoch)", printed)
    names = sorted(path.name for path in (RUN / "checkpoints").iterdir())
    assert names[0].startswith("best-epoch")
    assert names[1] == "last.ckpt"
    assert main.main(["test", "--ckpt_path", "best"])["test/ce"] == told["test/ce"]
    train(*LOGS, "--lr", 0)
    assert "version_1" in str(main.parse(["test", "--ckpt_path", "best"]).ckpt_path)


class Teacher(MInterface):
    """A moving mean of the weights and a count, both changed in hooks of the module's own (BYOL, mean teachers)."""

    def __init__(self, num_features: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)
        self.teacher = nn.Linear(num_features, num_classes).requires_grad_(False)
        self.register_buffer("count", torch.zeros(4))

    def step(self, batch: list[Tensor], stage: str) -> Tensor:
        loss = super().step(batch, stage)
        return loss + (self(batch[0]) - self.teacher(batch[0])).square().mean()

    def on_train_batch_end(self, *_: Any) -> None:
        self.count[0] += 1
        for mean, weight in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(weight.detach(), 0.1)

    def on_train_epoch_start(self) -> None:
        self.count[1] += 1

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.count[2] += 1

    def on_validation_end(self) -> None:
        self.count[3] += not self.trainer.sanity_checking


@pytest.mark.parametrize("flags", [[], ["--val_check_interval", 0.5, "--accumulate_grad_batches", 2]])
def test_a_checkpoint_is_written_when_all_hooks_have_run(kill, flags: list[Any]) -> None:
    name = f"{__name__}.Teacher"
    kill("--model_name", name, "--batch_size", 16, "--max_epochs", 3, "--every_n_train_steps", 1, *flags)
    last = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert last["count"].tolist() == [15, 3, 3, 6 if flags else 3]


class Plateau(MInterface):
    """torch's own ReduceLROnPlateau, as Lightning's manual has it; the rate halves with each epoch."""

    def __init__(self, num_features: int, num_classes: int, monitor: str = "val_loss", **kwargs: Any) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)
        self.monitored = monitor

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": self.monitored}}


@pytest.mark.parametrize("flags", [[], ["--val_check_interval", 0.5]])
def test_a_plateau_of_ones_own_loses_no_step(kill, flags: list[Any]) -> None:
    name = f"{__name__}.Plateau"
    kill("--model_name", name, "--batch_size", 16, "--max_epochs", 4, "--every_n_train_steps", 2, *flags, shots=6)
    last = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] < 0.1


class Keeps(MInterface):
    """Keeps a buffer of its own in the checkpoint, without calling MInterface's hook."""

    def __init__(self, num_features: int, num_classes: int, kind: str = "list", **kwargs: Any) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)
        self.kind, self.queue = kind, deque[float](maxlen=5)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.queue.append(loss.item())
        return loss + sum(self.queue) * self.network.bias.sum()  # a replay of what was

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kinds = {"list": list, "deque": lambda queue: queue, "numpy": lambda queue: {"of": np.array(queue)}}
        checkpoint["queue"] = kinds[self.kind](self.queue)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.queue = deque(checkpoint["queue"], maxlen=5)


KEEPS = ["--model_name", f"{__name__}.Keeps", "--batch_size", 16, "--every_n_train_steps", 1]


def test_a_buffer_of_ones_own_goes_on(kill) -> None:
    kill(*KEEPS, "--max_epochs", 2)


@pytest.mark.parametrize(("kind", "key"), [("deque", "queue"), ("numpy", "queue.of")])
def test_the_first_save_says_what_no_checkpoint_can_hold(train, capsys, kind: str, key: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(*KEEPS, "--max_epochs", 2, "--kind", kind)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert key in line
    assert {"deque": "deque", "numpy": "ndarray"}[kind] in line
    assert "on_save_checkpoint" in line
    assert not list(RUN.rglob("*.part"))


class Plain(LightningModule):
    """A LightningModule as in any tutorial: its own loss, optimiser, schedule and metrics."""

    def __init__(self, num_features: int, num_classes: int, hidden: int = 6, lr: float = 0.1) -> None:
        """hidden: units of the hidden layer."""
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(num_features, hidden), nn.Tanh(), nn.Linear(hidden, num_classes))
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = multi_margin_loss(self(batch[0]), batch[1])
        self.log("train/margin", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        self.accuracy.update(logits, batch[1])
        self.log_dict({"val/margin": multi_margin_loss(logits, batch[1]), "val/acc": self.accuracy})

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/margin", multi_margin_loss(self(batch[0]), batch[1]))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class PlainHeir(Plain):
    """One whose base class is no class of Lightning itself."""

    def __init__(self, num_features: int, num_classes: int, hidden: int = 4) -> None:
        super().__init__(num_features, num_classes, hidden)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train/mean", loss, on_step=False, on_epoch=True)
        return loss


PLAIN = ["--model_name", f"{__name__}.Plain", "--batch_size", 16]
HEIR = ["--model_name", f"{__name__}.PlainHeir", "--batch_size", 16]


def test_a_lightning_module_runs_as_it_is(kill, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--monitor", "val/acc", "--patience", 3, "--hidden", 5, "--lr", 0.05, "--max_epochs", 3]
    told = kill(*PLAIN, *flags, "--every_n_train_steps", 1)
    best = {"best_epoch", "best_val/margin", "best_val/acc"}
    assert told.keys() == {"epoch", "train/margin", "val/margin", "val/acc", "test/margin"} | best
    last = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    group = last["optimizer_states"][0]["param_groups"][0]
    assert (group["momentum"], group["lr"], group["initial_lr"]) == (0.9, 0.05 / 8, 0.05)
    assert last["state_dict"]["layers.0.weight"].shape == (5, 2)
    assert main.main(["test", "--ckpt_path", "best"])["test/margin"] == told["test/margin"]
    assert main.main(["validate", "--ckpt_path", "best"])["val/acc"] <= 1
    main.main(["predict", "--ckpt_path", "best", "--format", "npy"])
    main.main(["export", "--ckpt_path", "best"])
    (path,) = RUN.glob("checkpoints/best-*")
    module = Plain(2, 3, hidden=5)
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    with torch.no_grad():
        points = torch.randn(7, 2)
        exported = torch.export.load(RUN / "network.pt2").module()
        assert torch.allclose(exported(points), module(points), atol=1e-6)
    assert np.load(RUN / "predictions.npy").shape == (9, 3)
    main.main(["predict", "--ckpt_path", "best"])
    rows = list(csv.DictReader((RUN / "predictions.csv").read_text().splitlines()))
    test = main.load("best").data.split("test")
    assert [int(row["true"]) for row in rows] == [test[index][1] for index in range(9)]


class Silent(Plain):
    """Logs nothing."""

    training_step = lambda self, batch, batch_idx: cross_entropy(self(batch[0]), batch[1])  # noqa: E731
    validation_step = test_step = lambda self, batch, batch_idx: None


def test_one_that_logs_nothing_trains_to_the_end(train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--model_name", f"{__name__}.Silent", "--max_epochs", 2)["epoch"] == 2
    assert str(RUN) in capsys.readouterr().out.splitlines()[-1]


def test_it_trains_as_under_lightning_alone(train) -> None:
    """The same weights as by a loop written by hand, over the batches that the run saw."""
    batches: list[list[Tensor]] = []
    save = LambdaCallback(on_train_batch_start=lambda _, __, batch, ___: batches.append(batch))
    main.main([*TOYS, *map(str, PLAIN), "--max_epochs", "1"], [save])
    torch.manual_seed(0)
    module = Plain(2, 3)
    first = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    for points, target in batches:
        optimizer.zero_grad()
        multi_margin_loss(module(points), target).backward()
        optimizer.step()
    same(dict(module.state_dict()), dict(first))


def test_without_the_default_metric_the_latest_epoch_counts_as_the_best(train, capsys) -> None:
    train(*PLAIN, "--max_epochs", 2)
    assert "Plain logs no val_loss, but val/margin, val/acc: the latest epoch" in capsys.readouterr().out
    assert [path.name for path in RUN.glob("checkpoints/best*")] == ["best-epoch2-epoch=2.ckpt"]
    assert "test/margin" in main.main(["test", "--ckpt_path", "best"])
    with pytest.raises(SystemExit, match="2"):
        train(*PLAIN, "--max_epochs", 2, "--patience", 2)
    assert "--monitor val_loss: Plain logs no val_loss, but val/margin, val/acc" in capsys.readouterr().err


class OwnOptimizer(MInterface):
    """Steps by an optimiser of its own, which knows of no flag but lr_scale."""

    def __init__(self, num_features: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1 * (1 + len(self.lr_scale)))


def test_a_report_and_a_list_of_runs_know_its_metrics(train, capsys) -> None:
    train(*PLAIN, "--monitor", "val/margin", "--monitor_mode", "min", "--max_epochs", 3)
    train(*PLAIN, "--max_epochs", 2)  # no val_loss: by the latest epoch
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main.main(["runs", "--where", "val/margin>=0"])
    assert "version_0" in (told := capsys.readouterr().out)
    assert "version_1" not in told
    with pytest.raises(SystemExit, match="0"):
        main.main(["report"])
    with Path("report/report.csv").open() as file:
        first, second = csv.DictReader(file)
    margins = rows("val/margin")
    assert float(first["val/margin"]) == pytest.approx(min(margins))
    assert int(first["epoch"]) == 1 + margins.index(min(margins))
    assert int(second["epoch"]) == 2
    with Path("lightning_logs/version_1/metrics.csv").open() as file:
        last = [float(row["val/margin"]) for row in csv.DictReader(file) if row["val/margin"]][-1]
    assert float(second["val/margin"]) == pytest.approx(last)


class Sums(MInterface):
    """Sums 101 for each batch in a metric of its own."""

    def __init__(self, num_features: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)
        self.total = SumMetric()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.total.update(101.0)
        self.log("train/total", self.total, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


def test_a_metric_of_ones_own_sums_in_32_bits(train) -> None:
    flags = ["--model_name", f"{__name__}.Sums", "--batch_size", 16, "--max_epochs", 1, "--precision", "bf16-true"]
    assert train(*flags)["train/total"] == 505.0  # in bfloat16 504


class Renamed(nn.Module):
    """A layer that had its weight under another name, and still takes it."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, num_features))
        self.register_load_state_dict_pre_hook(self.rename)

    @staticmethod
    def rename(module: Any, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
        if prefix + "old" in weights:
            weights[prefix + "weight"] = weights.pop(prefix + "old")

    def forward(self, points: Tensor) -> Tensor:
        return points @ self.weight.T


class Renames(nn.Module):
    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layer = Renamed(num_features, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points)


def test_a_network_may_rename_the_weights_of_a_checkpoint(train, capsys) -> None:
    train("--model_name", f"{__name__}.Renames", "--max_epochs", 1)
    wanted = main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    train("--model_name", f"{__name__}.Renames", "--max_epochs", 1)
    last = Path("lightning_logs/version_1/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    for name, accepted in (("old", True), ("other", False)):
        weights = checkpoint["state_dict"].copy()
        weights[f"network.layer.{name}"] = weights.pop("network.layer.weight")
        torch.save(checkpoint | {"state_dict": weights}, last)
        if accepted:
            assert main.main(["--ckpt_path", "version_1", "--max_epochs", "2"]) == wanted
        else:
            with pytest.raises(SystemExit, match="2"):
                main.main(["--ckpt_path", "version_1", "--max_epochs", "2"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "network.layer.weight is not there" in line


IGNORED = {
    "OwnOptimizer": ["lr 1.0", "optimizer AdamW", "weight_decay 0.1", "lr_scheduler step", "warmup_steps 3"],
    "Plain": ["optimizer AdamW", "loss mse_loss", "metrics f1", "lr_scheduler step", "class_weights balanced"],
    "PlainHeir": ["optimizer AdamW", "class_weights balanced"],
    "Logs": ["loss mse_loss", "class_weights balanced", "head_losses one=mse_loss", "metric_thresholds 5"],
}


@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name, flags in IGNORED.items() for flag in flags])
def test_a_flag_without_effect_is_refused(train, capsys, name: str, flag: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--model_name", f"{__name__}.{name}", "--max_epochs", 1, *f"--{flag}".split())
    assert f"--{flag.split()[0]} would have no effect: {name} " in capsys.readouterr().err
    assert not Path("lightning_logs").exists()


def test_a_run_that_once_kept_such_a_flag_goes_on(train) -> None:
    train("--model_name", f"{__name__}.OwnOptimizer", "--max_epochs", 1)
    with (RUN / "config.yaml").open("a") as config:
        config.write("lr: 0.002\noptimizer: Adam\n")
    assert "test_acc" in main.main(["--ckpt_path", "last", "--max_epochs", "2"])


class PlainData(LightningDataModule):
    """A LightningDataModule as in any tutorial."""

    num_features, num_classes = 2, 3

    def __init__(self, batch_size: int = 16, num_items: int = 90) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.prepared = self.set_up = 0

    def prepare_data(self) -> None:
        self.prepared += 1

    def setup(self, stage: str | None = None) -> None:
        self.set_up += 1
        generator = torch.Generator().manual_seed(42)
        whole = TensorDataset(
            torch.randn(self.hparams.num_items, 2, generator=generator), torch.arange(self.hparams.num_items) % 3
        )
        self.train, self.val, self.test = random_split(whole, [0.8, 0.1, 0.1], generator)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.hparams.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Any:
        return [DataLoader(self.val, 4), DataLoader(self.test, 4)]

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 4)


class SeveralSets(Plain):
    """The same system, with several validation sets."""

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val", cross_entropy(self(batch[0]), batch[1]))


OWN_DATA = ["--dataset", f"{__name__}.PlainData", "--batch_size", 20, "--max_epochs", 3]


def test_a_lightning_data_module_runs_as_it_is(kill) -> None:
    name = f"{__name__}.SeveralSets"
    monitor = ["--monitor", "val/dataloader_idx_1", "--monitor_mode", "min"]
    told = kill("--model_name", name, *OWN_DATA, *monitor, "--every_n_train_steps", 1)
    assert {"val/dataloader_idx_0", "val/dataloader_idx_1", "test/margin"} < told.keys()
    assert torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9  # 72 // 20 an epoch
    assert main.main(["test", "--ckpt_path", "best"])["test/margin"] == told["test/margin"]
    main.main(["predict", "--ckpt_path", "best", "--format", "npy"])
    assert np.load(RUN / "predictions.npy").shape == (9, 3)


class OneSet(PlainData):
    """The same with one validation set."""

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 4)


def test_its_data_go_with_a_plain_network_too(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*WITHOUT_WORKERS, "--dataset", f"{__name__}.OneSet", "--max_epochs", "1"]
    assert {"train_loss", "val_loss", "test_acc"} <= main.main([*flags, "--num_items", "60"]).keys()
    for flag in ("--val_fraction", "--num_workers"):
        with pytest.raises(SystemExit, match="2"):
            main.main([*flags, flag, "0"])
        assert f"{flag} would have no effect: OneSet loads its data itself" in capsys.readouterr().err


class Histories(Dataset):
    """Users with what they have clicked on so far, of any length, and the next item; ids are large numbers."""

    FIRST_ID = 20_000_001  # a float32 holds no odd number of this size

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        clicks = torch.arange(index, index + 1 + index % 5) % 7
        return {"history": clicks, "user": index % 10, "item": int(clicks.sum()) % 7}


def pad(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    lengths = torch.tensor([len(one["history"]) for one in items])
    history = nn.utils.rnn.pad_sequence([one["history"] for one in items], batch_first=True, padding_value=7)
    numbers = {name: torch.tensor([one[name] for one in items]) for name in ("user", "item")}
    return {"history": history, "length": lengths, **numbers}


class Clicks(LightningDataModule):
    """Loaders whose collate_fn pads: no two items make a batch without it."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Histories(), 8, shuffle=True, collate_fn=pad)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Histories(), 8, collate_fn=pad)

    test_dataloader = val_dataloader


class Recommender(LightningModule):
    """Two embeddings; the whole catalogue is encoded once an epoch, before validation, test and prediction."""

    def __init__(self, dim: int = 4, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.users, self.items = nn.Embedding(10, dim), nn.Embedding(8, dim, padding_idx=7)
        self.tower = nn.Linear(dim, dim)

    def forward(self, user: Tensor, history: Tensor, length: Tensor) -> Tensor:
        return self.tower(self.users(user) + self.items(history).sum(1) / length[:, None])

    def encode(self) -> None:
        self.catalogue = nn.functional.normalize(self.tower(self.items.weight[:7]))

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = encode

    def scores(self, batch: dict[str, Tensor], catalogue: Tensor) -> Tensor:
        return self(batch["user"], batch["history"], batch["length"]) @ catalogue.T

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.scores(batch, self.tower(self.items.weight[:7])), batch["item"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        first = self.scores(batch, self.catalogue).topk(3).indices == batch["item"][:, None]
        self.log("val/recall@3", first.any(1).float().mean(), batch_size=len(first))

    test_step = validation_step

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        best = self.scores(batch, self.catalogue).topk(3)
        return {"ids": best.indices + Histories.FIRST_ID, "scores": best.values}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), self.hparams.lr)


def test_a_recommender_trains_predicts_and_exports(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_name", f"{__name__}.Recommender", "--dataset", f"{__name__}.Clicks", "--monitor", "val/recall@3"]
    told = main.main([*WITHOUT_WORKERS, *flags, "--max_epochs", "2"])
    (path,) = RUN.glob("checkpoints/best-*")
    module = Recommender.load_from_checkpoint(path, weights_only=True)
    batch = pad([Histories()[index] for index in range(40)])
    with torch.no_grad():
        module.encode()
        best = module.predict_step(batch, 0)
    hits = (best["ids"] - Histories.FIRST_ID == batch["item"][:, None]).any(1)
    assert told["best_val/recall@3"] == pytest.approx(hits.double().mean().item())
    for wrong, line in {
        "--format=csv": "a dict of ids, scores: --head_name, one of ids, scores",
        "--head_name=score": "--head_name score; did you mean 'scores'?; there are: ids, scores",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            main.main(["predict", "--ckpt_path", "best", wrong])
        assert line in capsys.readouterr().err
    main.main(["predict", "--ckpt_path", "best", "--head_name", "ids"])
    rows = list(csv.DictReader((RUN / "predictions.csv").read_text().splitlines()))
    assert [[int(row[f"y{at}"]) for at in range(3)] for row in rows] == best["ids"].tolist()
    main.main(["predict", "--ckpt_path", "best", "--head_name", "ids", "--format", "npy"])
    assert np.load(RUN / "predictions.npy").tolist() == best["ids"].tolist()
    main.main(["predict", "--ckpt_path", "best", "--layer", "tower"])  # that the hook runs too
    with torch.no_grad():
        users = module(batch["user"], batch["history"], batch["length"])
    torch.testing.assert_close(torch.from_numpy(np.load(RUN / "layer_tower.npy")), users)
    main.main(["export", "--ckpt_path", "best"])
    inputs = {name: batch[name][:, :2] if name == "history" else batch[name] for name in ("user", "history", "length")}
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(RUN / "network.pt2").module()(**inputs), module(**inputs))
    run = main.load("best")
    torch.testing.assert_close(run.predict(batch), best)  # its hooks are called
    with pytest.raises(SystemExit, match="2"):
        main.main(["--ckpt_path", "last", "--lr", "0.2"])
    assert "cannot change; --init_from in place of --ckpt_path begins anew" in capsys.readouterr().err


def pad_pairs(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    lists, targets = zip(*items, strict=True)
    return nn.utils.rnn.pad_sequence([*lists], batch_first=True), torch.tensor(targets)


class Lists(LightningDataModule):
    """Lists of numbers of any length, padded by the loaders, and whether the sum is above 0."""

    num_classes = 2

    def setup(self, stage: str | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        lists = [torch.randn(1 + index % 5, generator=generator) for index in range(40)]
        self.items = [(numbers, int(numbers.sum() > 0)) for numbers in lists]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.items, 8, shuffle=True, collate_fn=pad_pairs)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.items, 8, collate_fn=pad_pairs)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


class SumNet(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(1, num_classes)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.layer(numbers.sum(1, keepdim=True))


def test_a_name_that_nobody_knows_is_refused_before_the_first_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_name", f"{__name__}.Recommender", "--dataset", f"{__name__}.Clicks", "--monitor", "val/cold"]
    steps: list[Any] = []
    with pytest.raises(SystemExit, match="2"):
        main.main([*WITHOUT_WORKERS, *flags], [LambdaCallback(on_train_batch_start=lambda *_: steps.append(_))])
    assert "give --monitor val/cold --monitor_mode min, or max" in capsys.readouterr().err
    assert not steps


def test_its_collate_function_makes_the_batches_of_a_plain_network(capsys: pytest.CaptureFixture[str]) -> None:
    """Also of the first batch, which says what the items are, and those of `preview`."""
    flags = ["--model_name", f"{__name__}.SumNet", "--dataset", f"{__name__}.Lists", "--max_epochs", "1"]
    main.main([*WITHOUT_WORKERS, *flags])
    assert main.load("last").data.sample()[0].shape == (2, 2)
    main.main(["preview", "--dataset", f"{__name__}.Lists"])
    assert "without a collate_fn" not in capsys.readouterr().out


class Whole(LightningDataModule):
    """Datasets of whole batches, which the loaders hand on as they are, or turn over."""

    num_features, num_classes = 2, 3

    def __init__(self, turned: bool = False) -> None:
        super().__init__()
        self.collate_fn = turn if turned else None

    def train_dataloader(self) -> DataLoader:
        batches = [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(4)]
        return DataLoader(batches, batch_size=None, collate_fn=self.collate_fn)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = train_dataloader


def turn(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0][:, [1, 0]], batch[1]


@pytest.mark.parametrize("turned", [False, True])
def test_a_loader_of_whole_batches_gives_the_first_as_it_is(turned: bool) -> None:
    flags = [*WITHOUT_WORKERS, "--dataset", f"{__name__}.Whole", "--max_epochs", "1"]
    assert "test_acc" in main.main([*flags, "--turned"] if turned else flags)
    data = main.load("last").data
    inputs, targets = data.sample()
    first = data.split("train")[0][0]
    assert torch.equal(inputs, first[:, [1, 0]] if turned else first)
    assert targets.shape == (8,)


def test_its_hooks_are_called_once() -> None:
    from data.lightning_data_interface import LightningDataInterface

    data = LightningDataInterface(own := PlainData(), seed=0)
    first = [points for points, _ in data.train_dataloader()]
    again = [points for points, _ in LightningDataInterface(PlainData(), seed=0).train_dataloader()]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert [len(points) for points in first] == [16] * 4
    assert data.attribute("num_classes") == 3
    assert len(data.split("val")) == 9
    assert (own.prepared, own.set_up) == (1, 1)
    assert data.hparams.num_items == 90


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("items", [1, 7, 12])
def test_what_fills_up_a_batch_never_reaches_the_collate_function(items: int, world_size: int) -> None:
    seen: list[int] = []

    def collate(batch: list[int]) -> tuple[int, ...]:
        seen.extend(batch)
        return tuple(batch)

    loaders = [
        ResumableLoader(range(items), 4, seed=0, rank=rank, world_size=world_size, pad=False, collate_fn=collate)  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    batches = [list(loader) for loader in loaders]
    assert sorted(seen) == list(range(items))
    assert len({len(one) for one in batches}) == 1  # all ranks take the same number of steps


class Boxes(Dataset):
    """Images with lists of boxes, collated into tuples as for torchvision's detectors."""

    def __init__(self, num_items: int = 91) -> None:
        self.num_items = num_items

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(3, 8, 8), {"boxes": torch.ones(1 + index % 3, 4)}

    @staticmethod
    def collate_fn(items: list[Any]) -> tuple[Any, ...]:
        return tuple(zip(*items, strict=True))


class Counter(LightningModule):
    """Counts images and boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.images, self.boxes = SumMetric(), SumMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(torch.ones(1, 1)).square().sum()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        assert all(image.shape == (3, 8, 8) for image in images)
        self.images.update(len(images))
        self.boxes.update(sum(len(target["boxes"]) for target in targets))
        self.log_dict({"test_images": self.images, "test_boxes": self.boxes}, on_epoch=True, batch_size=len(images))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_every_image_is_counted_once_by_several_processes(ranks) -> None:
    flags = ["--model_name", f"{__name__}.Counter", "--dataset", f"{__name__}.Boxes", "--test_fraction", "0.2"]
    flags += ["--batch_size", "4", "--max_epochs", "1", "--accelerator", "cpu"]
    counts = []
    for number in (1, 2):
        ranks(*flags, number=number)
        values = json.loads(Path(f"lightning_logs/version_{len(counts)}/metrics.json").read_text())
        counts.append((values["test_images"], values["test_boxes"]))
    assert counts[0] == counts[1]
    assert counts[0][0] == 18


def test_going_on_from_the_best_of_a_metric_of_the_training(train) -> None:
    monitor = ["--monitor", "train/mean", "--monitor_mode", "min", "--save_top_k", -1, "--patience", 3]
    whole = train(*HEIR, *monitor, "--max_epochs", 3)
    (first,) = RUN.glob("checkpoints/best-epoch1-*")
    wanted = rows("train/mean")
    again = main.main(["--ckpt_path", str(first), "--max_epochs", "3"])
    assert rows("train/mean") == wanted
    assert again["train/mean"] == whole["train/mean"]


@pytest.mark.parametrize("monitor", ["val/mean", "train/mean"])
def test_without_validation_the_training_chooses(train, monitor: str) -> None:
    train(*HEIR, "--monitor", monitor, "--monitor_mode", "min", "--val_fraction", 0, "--max_epochs", 2)
    assert [path.name.partition("=")[0] for path in RUN.glob("checkpoints/best*")] == ["best-epoch2-train_mean"]


def test_the_latest_epoch_is_its_end(train) -> None:
    train(*PLAIN, "--max_epochs", 2, "--val_check_interval", 0.5)
    (best,) = RUN.glob("checkpoints/best*")
    names = (best, RUN / "checkpoints/last.ckpt")
    steps = [torch.load(path, weights_only=True)["global_step"] for path in names]
    assert steps[0] >= steps[1] - 1


def test_features_count_the_items_of_any_system(train) -> None:
    train(*PLAIN, "--max_epochs", 1, "--throughput", "--log_grad_norm", "--log_every_n_steps", 1)
    assert rows("items_per_second")[0] > 0
    assert len(rows("grad_norm")) == 5
