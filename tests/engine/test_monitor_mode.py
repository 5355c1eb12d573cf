"""Which direction of `--monitor` is better: torchmetrics says it, or the user; nobody guesses."""

import inspect
from pathlib import Path

import main
import pytest
import torch
import torchmetrics
from model import MInterface
from torch import Tensor, nn
from torchmetrics import classification, regression

CLASSES = {
    name: metric.higher_is_better
    for module in (classification, regression)
    for name, metric in inspect.getmembers(module, inspect.isclass)
    if issubclass(metric, torchmetrics.Metric) and isinstance(metric.higher_is_better, bool)
}


def test_every_metric_of_torchmetrics_has_its_direction() -> None:
    from engine.checkpointing.monitor_mode import known_mode

    assert len(CLASSES) > 60
    assert {name: known_mode(f"val_{name.lower()}") for name in CLASSES} == {
        name: "max" if higher else "min" for name, higher in CLASSES.items()
    }
    assert known_mode("val_cohenkappa") == known_mode("val/f1") == known_mode("test_averageprecision") == "max"
    assert known_mode("val_loss") == known_mode("val_hingeloss") == known_mode("val_hammingdistance") == "min"
    assert {known_mode(f"val/{name}") for name in ("recall@10", "ndcg@5", "hit_rate@1", "mrr")} == {"max"}
    assert known_mode("val_top2") is known_mode("lr") is None


def test_a_metric_that_grows_is_not_stopped(train) -> None:
    flags = ["--model_name", "lenet", "--dataset", "digits", "--metrics", "CohenKappa", "--monitor", "val_cohenkappa"]
    metrics = train(*flags, "--patience", 2, "--max_epochs", 5)
    (best,) = Path("lightning_logs/version_0/checkpoints").glob("best-*")
    assert float(best.stem.rpartition("=")[2]) > 0.9
    assert metrics["val_cohenkappa"] > 0.9  # all five epochs were trained


class Top2(MInterface):
    """Logs a number of its own, of which more is better, but only it knows."""

    def __init__(self, num_features: int = 2, num_classes: int = 3, **kwargs) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_top2", float(self.current_epoch + 1))


class KnownTop2(Top2):
    """The same as a metric object, which says it."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.metrics["val_top2"] = classification.MulticlassAccuracy(3, top_k=2)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        MInterface.validation_step(self, batch, batch_idx)
        self.metrics["val_top2"].update(self(batch[0]), batch[1])


def test_what_nobody_knows_must_be_said(train, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_name", f"{__name__}.Top2", "--monitor", "val_top2", "--max_epochs", 3]
    with pytest.raises(SystemExit, match="2"):
        train(*flags)
    assert "--monitor val_top2 --monitor_mode min, or max" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit, match="2"):
        train(*flags, "--monitor", "val_top1")
    line = "--monitor val_top1: Top2 logs no val_top1, but val_top2, val_loss, val_acc; did you mean 'val_top2'?"
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert not list(Path("lightning_logs").glob("version_*"))
    train(*flags, "--monitor_mode", "max", "--save_top_k", 3)
    names = [path.name for path in Path("lightning_logs").glob("*/checkpoints/best-*")]
    assert sorted(name[:24] for name in names) == [f"best-epoch{n}-val_top2={n}.0" for n in (1, 2, 3)]
    assert "best-epoch3" in str(main.parse(["validate", "--ckpt_path", "best"]).ckpt_path)


def test_a_metric_object_of_ones_own_says_it(train) -> None:
    train("--model_name", f"{__name__}.KnownTop2", "--monitor", "val_top2", "--max_epochs", 1, "--patience", 1)
    (best,) = Path("lightning_logs").glob("*/checkpoints/best-*val_top2*")
    assert torch.load(best, weights_only=True)["callbacks"]["BestCheckpoint"]["best_model_score"] > 0


def test_a_checkpoint_says_the_direction_that_only_a_metric_object_knows(train, capsys) -> None:
    for lr in (0, 0.1):
        train("--model_name", f"{__name__}.KnownTop2", "--monitor", "val_top2", "--max_epochs", 4, "--save_top_k", 4,
              "--lr", lr)  # fmt: skip
    scores = {path: float(path.stem.rpartition("=")[2]) for path in Path("lightning_logs/version_1").rglob("best-*")}
    assert len({*scores.values()}) > 1
    found = main.parse(["validate", "--ckpt_path", "version_1"]).ckpt_path
    assert scores[found] == max(scores.values())
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main.main(["runs", "--sort", "best"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    untrained = max(float(path.stem.rpartition("=")[2]) for path in Path("lightning_logs/version_0").rglob("best-*"))
    assert max(scores.values()) > untrained
    assert listed == ["version_1", "version_0"]
