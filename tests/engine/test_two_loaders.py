"""FixMatch: a labelled and an unlabelled loader at once, of a LightningDataModule or as one dataset."""

import math
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
from gallery import RUN, Halt, HaltAt, exports, goes_on, predicts
from model import MInterface
from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

HERE = f"{__name__}."
FLAGS = ["--accelerator", "cpu", "--pictures", "false", "--lr", "0.05"]


def points(number: int, seed: int) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(number, 2, generator=torch.Generator().manual_seed(seed))
    return inputs, (inputs.sum(1) > 0).long()


class Noisy(Dataset):
    """A weak and a strong augmentation of each point, drawn anew whenever it is fetched, and its class."""

    def __init__(self, number: int, seed: int) -> None:
        self.points, self.targets = points(number, seed)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        point = self.points[index]
        return point + 0.1 * torch.randn(2), point + torch.randn(2), self.targets[index]


class TwoLoaders(LightningDataModule):
    def __init__(self, mode: str = "max_size_cycle", workers: int = 0, labelled: int = 10, each: int = 4) -> None:
        super().__init__()
        self.mode, self.workers, self.labelled, self.each = mode, workers, labelled, each

    def train_dataloader(self) -> Any:
        few, many = Noisy(self.labelled, 0), Noisy(44, 1)
        loaders = {
            "labelled": DataLoader(
                few, self.each, shuffle=True, num_workers=self.workers, drop_last=self.labelled < self.each
            ),
            "unlabelled": DataLoader(many, 8, shuffle=True, num_workers=self.workers),
        }
        return loaders if self.mode == "dict" else CombinedLoader(loaders, self.mode)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*points(20, 2)), 8)

    def test_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*points(20, 3)), 8)


class FixMatch(MInterface):
    """Sohn et al., 2020: the class that is sure for a weak augmentation is the target of the strong one."""

    def __init__(self, threshold: float = 0.8, **kwargs: Any) -> None:
        super().__init__(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)), task="multiclass", **kwargs)
        self.threshold = threshold

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss_of(self.network, batch)

    def loss_of(self, network: nn.Module, batch: Any) -> Tensor:
        loss = torch.zeros(())
        if batch["labelled"] is not None:  # CombinedLoader's max_size
            weak, _, targets = batch["labelled"]
            loss = loss + cross_entropy(network(weak), targets)
        weak, strong, _ = batch["unlabelled"]
        with torch.no_grad():
            share, guess = network(weak).softmax(1).max(1)
        sure = (share > self.threshold).float()
        return loss + (cross_entropy(network(strong), guess, reduction="none") * sure).mean()


class Keep(Callback):
    """Keeps the batches, and the first weights."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.first = {name: one.clone() for name, one in module.network.state_dict().items()}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)


SYSTEM = ["--model_name", f"{HERE}FixMatch", "--dataset", f"{HERE}TwoLoaders", *FLAGS]
STEPS = {"max_size_cycle": 6, "dict": 6, "max_size": 6, "min_size": 3}  # 44 / 8 and 10 / 4, rounded up


@pytest.mark.parametrize("mode", STEPS)
def test_it_goes_on_exactly_is_tested_predicted_and_exported(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gallery.QUICK", FLAGS)  # a LightningDataModule has workers of its own
    told = goes_on(*SYSTEM, "--mode", mode, batch=STEPS[mode] + STEPS[mode] - 1)
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2 * STEPS[mode]
    inputs, targets = points(20, 3)
    logits = exports()(inputs)
    assert told["test_loss"] == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-5)
    np.testing.assert_allclose(predicts(), logits.softmax(1).detach(), rtol=1e-4, atol=1e-6)


def test_the_steps_are_those_of_a_plain_loop_and_a_loader_that_comes_round_is_new() -> None:
    keep = Keep()
    main.main([*SYSTEM, "--max_epochs", "2"], [keep])
    module = FixMatch(threshold=0.8)
    net = module.network
    net.load_state_dict(keep.first)
    adam = torch.optim.Adam(net.parameters(), lr=0.05)
    cosine = [0.05 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    for batch, lr in zip(keep.batches, cosine, strict=True):
        adam.param_groups[0]["lr"] = lr
        adam.zero_grad()
        module.loss_of(net, batch).backward()
        adam.step()
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, one in net.state_dict().items():
        torch.testing.assert_close(last[f"network.{name}"], one, rtol=1e-4, atol=1e-6)
    few, _ = points(10, 0)
    passes = [torch.cat([batch["labelled"][0] for batch in keep.batches[at : at + 3]]) for at in range(0, 12, 3)]
    orders = [torch.cdist(one, few).argmin(1).tolist() for one in passes]
    assert len({tuple(order) for order in orders}) == 4  # of passes over the labelled items, two an epoch
    noise = [(one - few[order]).flatten() for one, order in zip(passes, orders, strict=True)]
    assert len({one.tolist()[0] for one in noise}) == 4


def test_pictures_of_batches_that_only_the_step_knows_are_left_out() -> None:
    told = main.main([*SYSTEM, "--pictures", "true", "--max_epochs", "1"])
    assert "val_loss" in told
    assert not (RUN / "first_batch.png").exists()


def test_a_preview_shows_the_first_and_items_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["preview", *SYSTEM[:6]])
    where, what = "TwoLoaders.train_dataloader", "what the items are, such as their classes, is read from the first of"
    assert f"{where}: {what} its loaders" in capsys.readouterr().out
    main.main([*SYSTEM, "--throughput", "--max_epochs", "1"])


def test_workers_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    told = [main.main([*SYSTEM, "--workers", str(number), "--max_epochs", "1"]) for number in (0, 1)]
    assert told[0] == told[1]
    assert "several loaders" not in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit, match="2"):
        main.main([*argv])
    text = capsys.readouterr().err.strip()
    assert len(text.splitlines()) == 1, text
    return text


def test_what_cannot_train_or_go_on_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = "CombinedLoader(mode='sequential') is not for training: max_size_cycle, max_size or min_size"
    assert wanted in refused(capsys, *SYSTEM, "--mode", "sequential", "--max_epochs", "1")
    assert "a training loader has no batch" in refused(capsys, *SYSTEM, "--labelled", "3", "--max_epochs", "1")
    argv = [*SYSTEM, "--max_epochs", "2", "--every_n_train_steps", "1", "--default_root_dir", "cut"]
    with pytest.raises(Halt):
        main.main(argv, [HaltAt(3)])
    kept = Path("cut", RUN, "config.yaml").read_text()
    said = refused(capsys, "--ckpt_path", f"cut/{RUN}", "--each", "5")
    assert "the run stopped within an epoch of loaders with other batches" in said
    assert Path("cut", RUN, "config.yaml").read_text() == kept
