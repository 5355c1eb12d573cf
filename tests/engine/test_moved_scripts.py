"""What scripts bring along when they are moved in: items, losses, metrics, folders and names as they were."""

import csv
import json
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
from gallery import QUICK
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric

HERE = f"{__name__}."
RUN = Path("lightning_logs/version_0")


class Prices(Dataset):
    """Numbers with noise: what a network that knows its uncertainty is trained on."""

    num_features = 2

    def __init__(self, num_items: int = 50) -> None:
        generator = torch.Generator().manual_seed(0)
        self.points = torch.rand(num_items, 2, generator=generator)
        self.prices = self.points.sum(1) + 0.1 * torch.randn(num_items, generator=generator) + 1

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.prices[index]


def gaussian(output: Tensor, price: Tensor) -> Tensor:
    mean, log_variance = output.unbind(1)
    return 0.5 * (log_variance + (price - mean) ** 2 / log_variance.exp()).mean()


class MedianError(Metric):
    """The median over a split of the error relative to the price."""

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("errors", [], dist_reduce_fx="cat")

    def update(self, output: Tensor, price: Tensor) -> None:
        assert output.dim() == 2
        self.errors.append((output[:, 0] - price).abs() / price)

    def compute(self) -> Tensor:
        return torch.cat(self.errors).median()


UNSURE = [*QUICK, "--model_name", "toys.Line", "--outputs", "2", "--dataset", f"{HERE}Prices", "--loss"]
UNSURE += [f"{HERE}gaussian", "--lr", "0.05", "--batch_size", "7", "--max_epochs", "2"]


@pytest.mark.parametrize("task", [[], ["--task", "other"]])
def test_a_metric_of_ones_own_measures_outputs_of_another_shape_than_the_targets(task: list[str]) -> None:
    told = main.main([*UNSURE, *task, "--metrics", f"{HERE}MedianError", "--monitor", "val_median_error"])
    main.main(["predict", "--ckpt_path", "best", "--loss", f"{HERE}gaussian"])
    answers = list(csv.DictReader((RUN / "predictions.csv").read_text().splitlines()))
    said, true = (np.array([float(row[name]) for row in answers]) for name in ("y0", "true"))
    errors = sorted(abs(said - true) / true)
    assert told["test_median_error"] == pytest.approx(errors[(len(errors) - 1) // 2], rel=1e-4)
    assert told["best_val_median_error"] > 0


@pytest.mark.parametrize("task", [[], ["--task", "other"]])
def test_one_of_torchmetrics_is_refused_there(task: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main([*UNSURE, *task, "--metrics", "mae", f"{HERE}MedianError"])
    said = "--metrics mae: the network gives of shape (5, 2), and the target is of shape (5,); one of your own, my_m"
    assert said in capsys.readouterr().err


class Found(Metric):
    """The share of each class that is found."""

    higher_is_better = True

    def __init__(self, classes: list[str]) -> None:
        super().__init__()
        for name in ("right", "there"):
            self.add_state(name, torch.zeros(len(classes)), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        right = output.argmax(1) == target
        for label in range(len(self.there)):
            self.right[label] += (right & (target == label)).sum()
            self.there[label] += (target == label).sum()

    def compute(self) -> Tensor:
        return self.right / self.there


def test_a_metric_of_ones_own_may_give_a_value_for_each_class(train) -> None:
    flags = ["--dataset", "toys.Named", "--noise", 1.5, "--max_epochs", 2, "--monitor", "val_found_b"]
    told = train(*flags, "--metrics", f"{HERE}Found", "Recall(average='none')")
    wanted = {f"test_found{one}": told[f"test_recall{one}"] for one in ("_a", "_b", "_c", "")}
    assert len({*wanted.values()}) > 2
    assert {name: told[name] for name in wanted} == pytest.approx(wanted)


class Weighed(nn.CrossEntropyLoss):
    """Its weights are constants, which a file of the network's weights does not have."""

    def __init__(self) -> None:
        super().__init__(weight=torch.tensor([1.0, 2.0, 3.0]))


def test_weights_alone_are_enough_for_a_loss_with_constants(train) -> None:
    train("--max_epochs", 1, "--loss", f"{HERE}Weighed", "--noise", 0)
    saved = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert "loss.weight" in saved
    torch.save({k.removeprefix("network."): v for k, v in saved.items() if k.startswith("network.")}, "net.pt")
    flags = ["--loss", f"{HERE}Weighed", "--noise", "0", "--model_name", "toys.Net", "--dataset", "toys.Blobs", *QUICK]
    assert main.main(["test", "--init_from", "net.pt", *flags]) == pytest.approx(
        main.main(["test", "--ckpt_path", "version_0"])
    )


class Rooted(Dataset):
    """Reads the folder that its author wrote down."""

    num_features, num_classes = 2, 3

    def __init__(self, root: str = "mine") -> None:
        self.targets = json.loads(Path(root, "targets.json").read_text())

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(self.targets[index])), self.targets[index]


def test_a_root_with_a_default_is_read_there_and_is_a_flag(train, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, targets in {"mine": [0, 1, 2] * 20, "other": [0, 1, 2] * 30}.items():
        Path(folder).mkdir()
        Path(folder, "targets.json").write_text(json.dumps(targets))
    for number, (flags, size) in enumerate([([], 60), (["--root", "other"], 90)]):
        train("--dataset", f"{HERE}Rooted", "--max_epochs", 1, *flags)
        splits = main.load(f"version_{number}").data
        assert sum(len(splits.split(name)) for name in ("train", "val", "test")) == size
    assert not Path("datasets").exists()
    with pytest.raises(SystemExit, match="2"):
        train("--dataset", f"{HERE}Rooted", "--data_dir", "other")
    assert "--data_dir would have no effect: Rooted takes its folder by --root" in capsys.readouterr().err


class Volumes(Dataset):
    """Crops of one size in training, and wholes of different sizes in validation and test."""

    num_features = 4

    def __init__(self, split: str = "train") -> None:
        self.sizes = [4] * 12 if split == "train" else [4, 5, 6]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        values = np.arange(self.sizes[index] * 4, dtype=np.float32).reshape(-1, 4)
        return {"points": values, "target": values[:, :1], "patient": str(index)}


@pytest.mark.parametrize("workers", ["0", "1"])
def test_items_of_different_sizes_in_one_batch_are_said_in_a_line(workers: str, capsys) -> None:
    flags = [*QUICK, "--model_name", "toys.Line", "--num_features", "4", "--dataset", f"{HERE}Volumes"]
    flags += ["--loss", "l1_loss", "--max_epochs", "1", "--num_workers", workers]
    with pytest.raises(SystemExit, match="2"):
        main.main([*flags, "--batch_size", "2"])
    error = capsys.readouterr().err
    assert "items of one batch differ in shape, [(4, 4), (4, 1)] and [(5, 4), (5, 1)]: a static method" in error
    assert error.count("\n") == 1
    main.main([*flags, "--batch_size", "1", "--accumulate_grad_batches", "2"])


class Masks(Dataset):
    """Images (1, 4, W) of different widths with a class for each pixel, a batch each."""

    classes = ["nothing", "organ", "tumour"]

    def __init__(self, split: str = "train") -> None:
        self.widths = [3, 9, 4, 7]

    def __len__(self) -> int:
        return len(self.widths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.rand(1, 4, self.widths[index], generator=torch.Generator().manual_seed(index))
        return image, (image[0] * 3).long()


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - Dice of classes 1 and 2, the mean over the items."""
    share, true = logits.softmax(1)[:, 1:], nn.functional.one_hot(mask, 3).movedim(-1, 1)[:, 1:]
    both = (share * true).flatten(2).sum(2)
    return (1 - 2 * both / (share.flatten(2).sum(2) + true.flatten(2).sum(2))).mean()


class DiceOf(Metric):
    """Dice of each class, the mean over the items."""

    higher_is_better = True

    def __init__(self, classes: list[str]) -> None:
        super().__init__()
        self.add_state("each", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, mask: Tensor) -> None:
        said, true = (nn.functional.one_hot(one, 3).flatten(1, 2) for one in (logits.argmax(1), mask))
        self.each.append(2 * (said * true).sum(1) / (said.sum(1) + true.sum(1)))

    def compute(self) -> Tensor:
        return torch.cat(self.each).mean(0)


class MasksModule(LightningDataModule):
    """The same, with loaders of its author's."""

    classes = Masks.classes

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Masks(), 1, shuffle=True)

    val_dataloader = test_dataloader = lambda self: DataLoader(Masks(), 1)


@pytest.mark.parametrize("data", ["Masks", "MasksModule"])
def test_masks_of_different_sizes_are_measured_an_item_at_a_time(data: str) -> None:
    flags = ["--accelerator", "cpu", "--model_name", f"{HERE}Pixels", "--dataset", HERE + data, "--lr", "0.2"]
    flags += ["--loss", f"{HERE}dice", *(["--batch_size", "1", "--num_workers", "0"] if data == "Masks" else [])]
    told = main.main([*flags, "--metrics", f"{HERE}DiceOf", "--monitor", "val_dice_of_tumour", "--max_epochs", "2"])
    saved = torch.load(next((RUN / "checkpoints").glob("best-*")), weights_only=True)["state_dict"]
    net, loss, metric = Pixels(), [], DiceOf(Masks.classes)
    net.load_state_dict({name.removeprefix("network."): one for name, one in saved.items()})
    for image, mask in DataLoader(Masks(), 1):
        loss.append(dice(net(image), mask).item())
        metric.update(net(image), mask)
    assert told["test_loss"] == pytest.approx(np.mean(loss))
    wanted = dict(zip(Masks.classes, metric.compute().tolist(), strict=True))
    assert {name: told[f"test_dice_of_{name}"] for name in wanted} == pytest.approx(wanted)


class 余弦(torch.optim.lr_scheduler.LambdaLR):
    """A schedule as torch has them, under a name that is no ASCII."""


class 网络(nn.Module):
    def __init__(self, num_features: int, num_classes: int, 宽度: int = 8, 丢弃率: float = 0.5) -> None:
        """宽度：隐藏层的神经元个数。丢弃率：训练时置零的比例。另见论文。"""  # noqa: RUF002
        super().__init__()
        self.层 = nn.Sequential(nn.Linear(num_features, 宽度), nn.Dropout(丢弃率), nn.Linear(宽度, num_classes))

    def forward(self, 点: Tensor) -> Tensor:
        return self.层(点)


def test_a_schedule_that_is_a_class_is_refused_in_a_line(train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--lr_scheduler", f"{HERE}余弦", "--max_epochs", 1)
    said = f"--lr_scheduler {HERE}余弦 is a class: write a function of the share of training done, in 0..1, that"
    printed = capsys.readouterr()
    assert said in printed.err
    assert not printed.out  # not begun
    assert not Path("lightning_logs").exists()


def test_names_and_docstrings_may_be_chinese(train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.main(["--model_name", f"{HERE}网络", "--dataset", "toys.Blobs", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--宽度 隐藏层的神经元个数 (int; default 8) --丢弃率 训练时置零的比例 (float; default 0.5)" in said
    told = train("--model_name", f"{HERE}网络", "--宽度", 4, "--max_epochs", 1)
    assert main.main(["test", "--ckpt_path", "last"])["test_loss"] == told["test_loss"]


class Abbreviates(网络):
    def __init__(self, num_features: int, num_classes: int, width: int = 8, share: float = 0.5) -> None:
        """width: units, a multiple of torch.nn.Linear: of 8. share: of those, such as 0.5: half. See also: it."""
        super().__init__(num_features, num_classes, width, share)


def test_a_full_stop_within_a_word_or_a_number_ends_no_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.main(["--model_name", f"{HERE}Abbreviates", "--dataset", "toys.Blobs", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--width units, a multiple of torch.nn.Linear: of 8 (int; default 8)" in said
    assert "--share of those, such as 0.5: half (float; default 0.5)" in said


def test_a_report_holds_metrics_of_chinese_names(capsys: pytest.CaptureFixture) -> None:
    io = pytest.importorskip("scipy.io")
    for number in range(2):
        folder = Path(f"lightning_logs/version_{number}")
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"model_name: a\ndataset: d\nlr: 0.{number}\n")
        lines = f"epoch,step,val_误差,val_面积\n0,4,0.5,3\n1,8,0.{number},4\n"
        (folder / "metrics.csv").write_text(lines, encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        main.main(["report"])
    arrays = io.loadmat("report/report.mat", simplify_cells=True)
    found = {one["name"]: one["value"].tolist() for key, one in arrays.items() if key.startswith("val_")}
    assert found == {"val_误差": [[0.5, 0.5], [0, 0.1]], "val_面积": [[3, 3], [4, 4]]}
    assert "Glyph" not in capsys.readouterr().err
