"""Data that only training needs: what measures, predicts or exports a run does without it."""

import shutil
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
from gallery import QUICK, RUN
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

HERE = f"{__name__}."


class Read(Dataset):
    """The points of a file for each split, and the parity of their numbers."""

    num_features = 2

    def __init__(self, split: str, data_dir: str = "files") -> None:
        self.points = torch.load(Path(data_dir, f"{split}.pt"), weights_only=True)
        self.targets = [index % 2 for index in range(len(self.points))]
        self.num_classes = 1 + max(self.targets)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.points[index], self.targets[index]


class ReadTrain(Read):
    def __init__(self, train: bool, data_dir: str = "files") -> None:
        super().__init__("train" if train else "test", data_dir)


class Module(LightningDataModule):
    num_features, num_classes = 2, 2

    def setup(self, stage: str) -> None:
        self.parts = getattr(self, "parts", {})
        for name in ("train", "val") if stage == "fit" else ("test",):
            self.parts[name] = Read(name)

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts["train"], 8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts["val"], 8)

    def test_dataloader(self) -> Any:
        return DataLoader(self.parts["test"], 8)


class Net(nn.Module):
    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_features, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points)


@pytest.mark.parametrize("dataset", ["Read", "ReadTrain", "Module"])
def test_a_run_is_measured_without_the_files_that_it_was_trained_on(dataset: str, capsys) -> None:
    Path("files").mkdir()
    for seed, (name, items) in enumerate({"train": 40, "val": 10, "test": 1}.items()):  # one item has one class
        torch.save(torch.randn(items, 2, generator=torch.Generator().manual_seed(seed)), f"files/{name}.pt")
    flags = ["--accelerator", "cpu", "--pictures", "false"] if dataset == "Module" else QUICK
    told = main.main([*flags, "--model_name", f"{HERE}Net", "--dataset", HERE + dataset, "--max_epochs", "1"])
    validated = main.main(["validate", "--ckpt_path", "best"])
    for name in ("train", "val"):
        shutil.move(f"files/{name}.pt", ".")
    capsys.readouterr()
    assert main.main(["test", "--ckpt_path", "best"])["test_loss"] == told["test_loss"]
    assert "goes on without the train split, which cannot be built: FileNotFoundError" in capsys.readouterr().err
    main.main(["predict", "--ckpt_path", "best", "--format", "npy"])
    main.main(["export", "--ckpt_path", "best"])
    points = torch.load("files/test.pt", weights_only=True)
    shares = torch.export.load(RUN / "network.pt2").module()(points).softmax(1)
    np.testing.assert_allclose(np.load(RUN / "predictions.npy"), shares.detach(), rtol=1e-5)
    with pytest.raises(FileNotFoundError):
        main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    if dataset == "Read":
        shutil.move("val.pt", "files")
        shutil.move("files/test.pt", ".")
        assert main.main(["validate", "--ckpt_path", "best"]) == validated


def test_what_is_measured_must_be_there(capsys) -> None:
    Path("files").mkdir()
    for name in ("train", "val", "test"):
        torch.save(torch.randn(20, 2), f"files/{name}.pt")
    main.main([*QUICK, "--model_name", f"{HERE}Net", "--dataset", f"{HERE}Read", "--max_epochs", "1"])
    torch.save(torch.randn(21, 2), "files/train.pt")
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", "best"])
    assert "the train split has 21 items, and had 20" in capsys.readouterr().err
    torch.save(torch.randn(22, 2), "files/test.pt")
    Path("files/train.pt").unlink()
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", "best"])
    assert "the test split has 22 items, and had 20" in capsys.readouterr().err
    Path("files/test.pt").unlink()
    with pytest.raises(FileNotFoundError):
        main.main(["test", "--ckpt_path", "best"])
