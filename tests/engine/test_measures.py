"""What is measured, against a plain loop: every number over a whole split, however it is cut into batches."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
import toys
from data import DInterface
from paths import TOYS
from plain_loop import CutOff
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset

RUN = Path("lightning_logs/version_0")


def column(name: str) -> list[float]:
    with (RUN / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def network(kind: type[nn.Module], *argv: Any, run: Path = RUN) -> nn.Module:
    """The trained network of a run, in evaluation."""
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    found = kind(*argv)
    found.load_state_dict({name.removeprefix("network."): one for name, one in weights.items()})
    return found.eval()


class Reused(toys.Blobs):
    """The same points, in batches whose memory is used again."""

    memory = torch.empty(1000, 2), torch.empty(1000, dtype=torch.long)

    @staticmethod
    def collate_fn(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        points, targets = (one[: len(items)] for one in Reused.memory)
        points.copy_(torch.stack([point for point, _ in items]))
        targets.copy_(torch.tensor([target for _, target in items]))
        return points, targets


def test_batches_may_use_the_same_memory(train) -> None:
    argv = ["--max_epochs", 2, "--lr", 0.02, "--batch_size", 4, "--logger", "csv"]
    assert train(*argv, "--dataset", "test_measures.Reused") == train(*argv)


class ReusedAnswers(toys.YesNo):
    """Questions whose answers are in memory that is used again."""

    memory = torch.empty(1000)

    @staticmethod
    def collate_fn(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        torch.stack([target for _, target in items], out=(targets := ReusedAnswers.memory[: len(items)]))
        return torch.stack([points for points, _ in items]), targets


def test_targets_that_a_metric_keeps_may_use_the_same_memory(train) -> None:
    argv = ["--model_name", "toys.Line", "--loss", "binary_cross_entropy_with_logits", "--max_epochs", 1]
    argv += ["--batch_size", 4, "--metrics", "auroc", "hingeloss"]  # hingeloss takes each batch as it comes
    assert train(*argv, "--dataset", "test_measures.ReusedAnswers") == train(*argv, "--dataset", "toys.YesNo")


class ReusedStream(toys.Endless):
    """A stream without a length, in batches whose memory is used again."""

    collate_fn = staticmethod(Reused.collate_fn)


def test_batches_of_a_stream_may_use_the_same_memory(train) -> None:
    argv = ["--max_epochs", 2, "--lr", 0.02, "--batch_size", 4, "--lr_scheduler", "constant"]
    assert train(*argv, "--dataset", "test_measures.ReusedStream") == train(*argv, "--dataset", "toys.Endless")


class TooLong(toys.Stream):
    """A stream that says that it has more items than there are."""

    def __len__(self) -> int:
        return 1000


def test_a_stream_that_is_shorter_than_it_says_is_named(train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--dataset", "test_measures.TooLong", "--batch_size", 10, "--num_sanity_val_steps", 0)
    assert "TooLong says that it has 1000 items, which are 100 batches, and gave 3" in capsys.readouterr().err


class Rare(toys.Numbers):
    """One item in 250 is of the class; its number is high, as are those of some others."""

    def __init__(self, num_items: int = 10000) -> None:
        generator = torch.Generator().manual_seed(1)
        self.points = torch.randn(num_items, 2, generator=generator)
        self.classes = torch.zeros(num_items)
        self.classes[::250] = 1.0
        self.points[::250] += 1.0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.points[index], self.classes[index]


def ranks(score: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """AUROC, by counting pairs, and average precision, by its definition."""
    pairs = (score[positive][:, None] > score[~positive]).mean() + (
        score[positive][:, None] == score[~positive]
    ).mean() / 2
    precisions = [positive[score >= one].mean() for one in score[positive]]
    return float(pairs), float(np.mean(precisions))


def test_auroc_and_average_precision_are_exact(train) -> None:
    argv = ["--model_name", "toys.Line", "--dataset", "test_measures.Rare", "--metrics", "auroc", "averageprecision"]
    argv += ["--loss", "binary_cross_entropy_with_logits", "--max_epochs", 1, "--lr", 0, "--val_fraction", 0.4]
    told = train(*argv, "--test_fraction", 0.4)
    data, line = Rare(), network(toys.Line)
    items = DInterface(Rare, seed=0, val_fraction=0.4, test_fraction=0.4).split("val").indices
    score = line(data.points[list(items)]).sigmoid().flatten().detach().numpy()
    auroc, precision = ranks(score, data.classes[list(items)].numpy() > 0)
    assert (told["val_auroc"], told["val_averageprecision"]) == pytest.approx((auroc, precision), abs=1e-6)
    binned = train(*argv, "--test_fraction", 0.4, "--metric_thresholds", 5)["val_auroc"]
    assert binned != pytest.approx(auroc, abs=1e-3)


@pytest.mark.filterwarnings("ignore:Metric")  # that it keeps the outputs
@pytest.mark.parametrize("bins", [[], ["--metric_thresholds", "200"]])
def test_auroc_and_calibration_do_not_depend_on_the_batches(train, bins: list[str]) -> None:
    argv = ["--dataset", "plain_loop.Points", "--max_epochs", 1, "--lr", 0, "--val_fraction", 0.5, "--dropout", 0]
    argv += ["--num_sanity_val_steps", 0, "--metrics", "auroc", "calibrationerror", "hingeloss", *bins]
    one, many = (train(*argv, "--batch_size", size) for size in (1, 45))  # some single items have all logits in 0..1
    for name in ("val_auroc", "val_calibrationerror", "val_hingeloss"):
        assert one[name] == pytest.approx(many[name], abs=1e-6), name


class Masks(Dataset):
    """Images of which every pixel is of one of three classes."""

    num_classes, num_channels = 3, 2

    def __len__(self) -> int:
        return 10000

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.rand(2, 64, 64), torch.randint(3, (64, 64))


class Pixels(nn.Conv2d):
    """Logits of each pixel."""

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__(num_channels, num_classes, 1)


def test_the_memory_of_an_exact_metric_is_said_where_it_is_much(train, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--dataset", "test_measures.Masks", "--model_name", "test_measures.Pixels", "--metrics", "auroc"]
    argv += ["--fast_dev_run", "--batch_size", 1]
    train(*argv)
    said = "exact auroc: 0.7 GB for the outputs of an epoch and 4 GB at its end, or bins by --metric_thresholds 200"
    assert said in capsys.readouterr().out  # 8000 * 64 * 64 pixels of 3 * 4 + 8 bytes
    train(*argv, "--metric_thresholds", 200)
    train("--fast_dev_run", "--metrics", "auroc")
    assert "exact auroc" not in capsys.readouterr().out


def test_auroc_of_an_epoch_that_was_cut_off_is_exact() -> None:
    argv = [*TOYS, "--metrics", "auroc", "--batch_size", "16", "--max_epochs", "2", "--every_n_train_steps", "1"]
    told = main.main(argv)
    with pytest.raises(InterruptedError):
        main.main(argv, [CutOff(8)])
    assert main.main(["--ckpt_path", "version_1"]) == told


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_sums_keep_their_precision(train, precision: str) -> None:
    argv = ["--max_epochs", 1, "--lr", 0, "--num_items", 30000, "--noise", 0, "--batch_size", 50, "--dropout", 0]
    argv += ["--val_fraction", 0.4, "--limit_train_batches", 1, "--num_sanity_val_steps", 0]
    whole, half = train(*argv), train(*argv, "--precision", precision)
    assert half["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-2)
    assert half["val_acc"] == pytest.approx(whole["val_acc"], abs=1e-6)


class Marked(toys.Blobs):
    """Points without noise, of which some have no class: more of them in some batches than in others."""

    def __init__(self, num_items: int = 90) -> None:
        super().__init__(num_items, 0.0)
        self.targets = [
            -100 if index % 5 and index < 60 else (index * index + index // 7) % 3 for index in range(num_items)
        ]
        self.places = torch.randn(num_items, 2, generator=torch.Generator().manual_seed(0))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.places[index], self.targets[index]


class MarkedElsewhere(Marked):
    """The same, by another number."""

    def __init__(self, num_items: int = 90) -> None:
        super().__init__(num_items)
        self.targets = [2 if target == -100 else target for target in self.targets]


@pytest.mark.parametrize("batch_size", [4, 40])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_mean_loss_is_that_of_the_whole_split(train, batch_size: int, balanced: bool, smoothing: float) -> None:
    argv = ["--dataset", "test_measures.Marked", "--max_epochs", 1, "--lr", 0, "--dropout", 0, "--test_fraction", 0.4]
    argv += ["--batch_size", batch_size, "--label_smoothing", smoothing, "--bad_steps", "ignore"]
    told = train(*argv, *(["--class_weights", "balanced"] if balanced else []))
    data, splits = Marked(), DInterface(Marked, seed=0, test_fraction=0.4)
    targets = torch.tensor(data.targets)
    parts = {name: torch.tensor(list(splits.split(name).indices)) for name in ("train", "test")}
    counts = targets[parts["train"]][targets[parts["train"]] >= 0].bincount(minlength=3)
    weight = counts.sum() / (3 * counts) if balanced else None
    logits = network(toys.Net, 2, 3)(data.places)
    for name, items in parts.items():
        loss = functional.cross_entropy(logits[items], targets[items], weight, label_smoothing=smoothing)
        assert told[f"{name}_loss"] == pytest.approx(loss.item(), rel=1e-5), name
    assert main.main(["test", "--ckpt_path", "last"])["test_loss"] == pytest.approx(told["test_loss"], rel=1e-6)


@pytest.mark.slow
def test_two_processes_measure_the_same_mean(ranks) -> None:
    argv = [*TOYS, "--dataset", "test_measures.Marked", "--max_epochs", "1", "--lr", "0", "--dropout", "0"]
    argv += ["--batch_size", "5", "--class_weights", "balanced", "--bad_steps", "ignore"]
    told = []
    for number in (1, 2):
        ranks(*argv, number=number)
        told.append(json.loads(Path(f"lightning_logs/version_{len(told)}/metrics.json").read_text()))
    assert told[1]["test_loss"] == pytest.approx(told[0]["test_loss"], rel=1e-5)
    assert told[1]["val_loss"] == pytest.approx(told[0]["val_loss"], rel=1e-5)


def test_classes_that_do_not_count_may_have_any_number(train) -> None:
    argv = ["--dataset", "test_measures.MarkedElsewhere", "--max_epochs", 1, "--lr", 0, "--dropout", 0]
    told = train(*argv, "--ignore_index", 2, "--metrics", "acc", "--bad_steps", "ignore")
    data, splits = MarkedElsewhere(), DInterface(Marked, seed=0)
    items = torch.tensor(list(splits.split("train").indices))
    targets, logits = torch.tensor(data.targets)[items], network(toys.Net, 2, 3)(data.places[items])
    loss = functional.cross_entropy(logits, targets, ignore_index=2)
    assert told["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    count = targets != 2
    assert told["train_acc"] == pytest.approx((logits.argmax(1) == targets)[count].float().mean().item(), abs=1e-6)


class MarkedStream(IterableDataset):
    """The same as a stream without a length."""

    num_features, num_classes = 2, 3

    def __init__(self, split: str, num_items: int = 60) -> None:
        self.items = [Marked(num_items)[index] for index in range(num_items)]

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(self.items)


@pytest.mark.parametrize("dataset", ["Marked", "MarkedStream"])
def test_the_last_step_of_an_epoch_is_the_mean_of_the_batches_it_has(train, dataset: str) -> None:
    argv = ["--dataset", f"test_measures.{dataset}", "--num_items", 60]
    argv += ["--val_fraction", 0, "--test_fraction", 0] if dataset == "Marked" else []
    argv += ["--optimizer", "SGD", "--lr_scheduler", "constant", "--dropout", 0, "--batch_size", 10, "--max_epochs", 1]
    argv += ["--accumulate_grad_batches", 4, "--loss", "test_measures.zeros_too"]
    train(*argv, "--lr", 0)
    plain = network(toys.Net, 2, 3)
    train(*argv, "--lr", 0.5)
    ended = network(toys.Net, 2, 3, run=RUN.with_name("version_1"))
    kind = {"Marked": Marked, "MarkedStream": MarkedStream}[dataset]
    data = DInterface(kind, {"num_items": 60}, seed=0, batch_size=10, val_fraction=0, test_fraction=0, num_workers=0)
    batches = list(data.train_dataloader())
    for window in (batches[:4], batches[4:]):
        plain.zero_grad()
        for points, targets in window:
            (zeros_too(plain.layers(points), targets) / len(window)).backward()
        with torch.no_grad():
            for weight in plain.parameters():
                weight -= 0.5 * weight.grad
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(ended.state_dict()[name], weight)


def zeros_too(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in which an item without a class is of the first one."""
    return functional.cross_entropy(output, target.clamp(min=0))


def test_the_rate_of_each_group_is_logged_by_its_name(train) -> None:
    argv = ["--lr_scale", "layers.0=0.1", "*.3.bias=0", "--lr", 1, "--lr_scheduler", "constant", "--max_epochs", 1]
    train(*argv, "--log_every_n_steps", 1, "--optimizer", "SGD", "--lr", 0.01)
    rates = {name: column(name)[0] for name in ("lr", "lr/layers.0", "lr/_.3.bias")}
    assert rates == pytest.approx({"lr": 0.01, "lr/layers.0": 0.001, "lr/_.3.bias": 0})


def test_plateau_cuts_at_the_fourth_validation_that_is_no_better(train) -> None:
    argv = [
        "--lr_scheduler",
        "plateau",
        "--lr",
        0,
        "--optimizer",
        "SGD",
        "--lr_gamma",
        0.5,
        "--noise",
        0,
        "--max_epochs",
        6,
    ]
    train(*argv, "--lr", 1e-20, "--log_every_n_steps", 1)
    assert column("lr")[::2] == pytest.approx([1e-20] * 5 + [5e-21])


def test_a_checkpoint_between_batches_whose_gradients_accumulate_is_not_gone_on_with(train, capsys) -> None:
    argv = ["--batch_size", 16, "--accumulate_grad_batches", 2, "--val_check_interval", 3, "--max_epochs", 1]
    train(*argv)
    best = next((RUN / "checkpoints").glob("best-*"))
    assert "test_loss" in main.main(["test", "--ckpt_path", str(best)])
    with pytest.raises(SystemExit, match="2"):
        main.main(["--ckpt_path", str(best), "--max_epochs", "2"])
    assert "was saved between batches whose gradients accumulate" in capsys.readouterr().err
