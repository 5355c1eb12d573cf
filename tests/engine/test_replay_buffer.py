"""A replay buffer of one's own: its state is in the checkpoint, and what is drawn from it follows from the seed."""

import random
from typing import Any

import main
import pytest
import torch
from gallery import QUICK, RUN, exports, goes_on, predicts
from model import MInterface
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import Dataset

HERE = f"{__name__}."


class Steps(Dataset):
    def __init__(self) -> None:
        self.points = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.points[index].sum().unsqueeze(0)


class Replay(MInterface):
    """Trains on new items and on as many of those that it has kept, a uniform share of all it has seen."""

    def __init__(self, capacity: int = 12, **kwargs: Any) -> None:
        super().__init__(nn.Linear(3, 1), loss="mse_loss", **kwargs)
        self.capacity, self.seen = capacity, 0
        self.kept: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = mse_loss(self(inputs), targets)
        if self.kept:
            old, answers = (torch.stack(one) for one in zip(*random.choices(self.kept, k=len(inputs)), strict=True))
            loss = loss + mse_loss(self(old), answers)
        for item in zip(inputs, targets, strict=True):  # reservoir sampling
            self.seen += 1
            if len(self.kept) < self.capacity:
                self.kept.append(item)
            elif (at := random.randrange(self.seen)) < self.capacity:
                self.kept[at] = item
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["replay"] = {"seen": self.seen, "kept": self.kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.seen, self.kept = checkpoint["replay"]["seen"], checkpoint["replay"]["kept"]


FLAGS = ["--model_name", f"{HERE}Replay", "--dataset", f"{HERE}Steps", "--batch_size", "8"]


class Keep(Callback):
    """Keeps the first weights, the batches, and the state of Python's random numbers in each."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.batches: list[Any] = []
        self.first = {name: one.clone() for name, one in module.network.state_dict().items()}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append((batch, random.getstate()))


@pytest.mark.parametrize("more", [[], ["--ema_decay", "0.9", "--precision", "64-true"]], ids=["", "averaged, 64 bits"])
def test_it_goes_on_exactly_is_tested_predicted_and_exported(more: list[str]) -> None:
    told = goes_on(*FLAGS, *more, batch=8)  # within the second epoch
    kept = [
        torch.load(f"lightning_logs/version_{at}/checkpoints/last.ckpt", weights_only=True)["replay"] for at in (0, 1)
    ]
    assert kept[0]["seen"] == kept[1]["seen"] == 96
    assert all(torch.equal(*pair) for one, other in zip(kept[0]["kept"], kept[1]["kept"], strict=True)
               for pair in zip(one, other, strict=True))  # fmt: skip
    assert main.main(["test", "--ckpt_path", "version_0"])["test_loss"] == told["test_loss"]
    assert predicts().shape == (6, 1)
    exports()


def test_it_trains_as_a_plain_loop() -> None:
    keep = Keep()
    main.main([*QUICK, *FLAGS, "--lr_scheduler", "constant", "--lr", "0.01", "--max_epochs", "2"], [keep])
    net, kept, seen = nn.Linear(3, 1), list[Any](), 0
    net.load_state_dict(keep.first)
    adam = torch.optim.Adam(net.parameters(), 0.01)
    for (inputs, targets), state in keep.batches:
        random.setstate(state)
        loss = (net(inputs) - targets).square().mean()
        if kept:
            drawn = random.choices(kept, k=len(inputs))
            loss = loss + torch.stack([(net(one) - answer).square() for one, answer in drawn]).mean()
        for item in zip(inputs, targets, strict=True):
            seen += 1
            if len(kept) < 12:
                kept.append(item)
            elif (at := random.randrange(seen)) < 12:
                kept[at] = item
        adam.zero_grad()
        loss.backward()
        adam.step()
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, one in net.state_dict().items():
        torch.testing.assert_close(last[f"network.{name}"], one, rtol=1e-4, atol=1e-6)
