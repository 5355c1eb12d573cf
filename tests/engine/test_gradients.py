"""Networks, losses and steps that take gradients in evaluation too, and losses that have none in training."""

from typing import Any

import main
import numpy as np
import pytest
import torch
from data import DInterface
from gallery import QUICK, RUN, goes_on, predicts
from model import MInterface
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import Dataset

HERE = f"{__name__}."
FLAGS = ["--batch_size", "8", "--optimizer", "SGD", "--lr", "0.1", "--loss", "mse_loss"]


class Forces(Dataset):
    """Points, and the force of a spring on each, as dicts or as pairs."""

    def __init__(self, named: bool = False) -> None:
        self.points, self.named = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)), named

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Any:
        point = self.points[index]
        return {"points": point, "target": -point} if self.named else (point, -point)


def layers() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


class Potential(nn.Module):
    """Forces as the negative gradient of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = layers()

    def forward(self, points: Tensor) -> Tensor:
        points = points.requires_grad_()
        return -torch.autograd.grad(self.energy(points).sum(), points, create_graph=True)[0]


class Energy(Potential):
    """The energy alone; a loss takes its gradient."""

    def forward(self, points: Tensor) -> Tensor:
        return self.energy(points.requires_grad_())


class ForceError(nn.Module):
    def forward(self, output: Tensor, target: Tensor, points: Tensor) -> Tensor:
        return mse_loss(-torch.autograd.grad(output.sum(), points, create_graph=True)[0], target)


class OwnStep(MInterface):
    """A system with steps of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(Potential(), **kwargs)

    def step(self, batch: Any, stage: str) -> Tensor:
        with torch.enable_grad():
            loss = mse_loss(self(batch[0]), batch[1])
        self.log(f"{stage}_loss", loss, on_step=False, on_epoch=True)
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.enable_grad():
            return self(batch[0])


class OwnModule(LightningModule):
    """The same without any of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Potential()

    @torch.enable_grad()
    def forward(self, points: Tensor) -> Tensor:
        return self.network(points)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.training_step(batch, batch_idx))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def by_hand() -> tuple[dict[str, float], Tensor]:
    """The losses after one epoch, of a plain loop, and the forces of the test split."""
    data = DInterface(Forces)
    network, splits = Potential(), {name: torch.tensor(data.split(name).indices) for name in ("train", "val", "test")}
    optimizer, points = torch.optim.SGD(network.parameters(), 0.1), Forces().points
    data.batch_size = 8
    for inputs, target in data.train_dataloader():
        optimizer.zero_grad()
        mse_loss(network(inputs), target).backward()
        optimizer.step()
    forces = {name: network(points[at].clone()).detach() for name, at in splits.items()}
    losses = {f"{name}_loss": mse_loss(forces[name], -points[splits[name]]).item() for name in ("val", "test")}
    return losses, forces["test"]


KINDS = {
    "Potential": FLAGS,
    "Energy": [*FLAGS[:-1], f"{HERE}ForceError", "--named"],
    "OwnStep": FLAGS[:-2],
    "OwnModule": FLAGS[:2],
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_evaluation_are_those_of_a_plain_loop(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model_name", HERE + kind, "--dataset", f"{HERE}Forces", *KINDS[kind]]
    argv += [] if kind == "OwnModule" else ["--lr_scheduler", "constant"]
    losses, forces = by_hand()
    told = goes_on(*argv, epochs=1)
    assert {name: told[name] for name in losses} == pytest.approx(losses, rel=1e-5)
    for action, name in (("validate", "val_loss"), ("test", "test_loss")):
        assert main.main([action, "--ckpt_path", "version_0", "--pictures", "true"])[name] == told[name]
    written = predicts()
    assert main.load("version_0").predict(Forces().points[:4].clone()).numpy().shape == (4, written.shape[1])
    if kind != "Energy":
        assert written == pytest.approx(forces.numpy(), rel=1e-4, abs=1e-6)
        main.main(["predict", "--ckpt_path", "version_0", "--layer", "energy.1"])
        assert np.load(RUN / "layer_energy.1.npy").shape == (6, 8)
        with pytest.raises(SystemExit, match="2"):
            main.main(["export", "--ckpt_path", "version_0"])
        assert "takes gradients in its forward, which torch.export cannot follow" in capsys.readouterr().err


class NoGrad(nn.Module):
    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_features, num_classes)

    @torch.no_grad()
    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points)


class Frozen(NoGrad):
    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)
        self.requires_grad_(False)


class OwnLoss(NoGrad):
    item = False

    def forward(self, points: Tensor, targets: Tensor) -> dict[str, Any]:
        loss = cross_entropy(logits := self.layer(points), targets)
        return {"loss": loss.item() if self.item else loss.detach(), "logits": logits}


class OwnItem(OwnLoss):
    item = True


def detached(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(output, target).detach()


def item(output: Tensor, target: Tensor) -> float:
    return cross_entropy(output, target).item()


class Own(MInterface):
    def __init__(self, num_features: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(self(batch[0]), batch[1]).detach()


class OwnStepItem(Own):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx).item()


class Manual(Own):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(2, 3, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))


class FrozenModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class NoLength(NoGrad):
    """Has a length, of 0, as an empty nn.Sequential."""

    def __len__(self) -> int:
        return 0


WITHOUT = {
    "NoLength": "nothing is trained: the output of NoLength.forward has no gradient: it may be computed under",
    "NoGrad": "nothing is trained: the output of NoGrad.forward has no gradient: it may be computed under",
    "Frozen": "nothing is trained: Frozen has no parameter that requires a gradient",
    "OwnLoss": "nothing is trained: the loss of OwnLoss has no gradient",
    "OwnItem": "the `loss` that the network returns is a float: return the mean, a tensor ()",
    f"toys.Net --loss {HERE}detached": f"nothing is trained: --loss {HERE}detached has no gradient",
    f"toys.Net --loss {HERE}item": f"--loss {HERE}item gives a float: return the mean (), or a dict of such",
    "Own": "nothing is trained: the loss of Own.training_step has no gradient",
    "OwnStepItem": "`training_step` must return a Tensor, a dict, or None",
    "FrozenModule": "nothing is trained: FrozenModule has no parameter that requires a gradient",
}


@pytest.mark.parametrize("mistake", WITHOUT)
def test_a_loss_without_gradient_is_said_in_one_line(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*QUICK, "--dataset", "toys.Blobs", "--max_epochs", "1"]
    with pytest.raises(SystemExit, match="2"):
        main.main([*flags, "--model_name", *(mistake if mistake.startswith("toys") else HERE + mistake).split()])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert WITHOUT[mistake] in lines[0]


def test_a_loss_without_gradient_of_a_step_of_ones_own_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="does not require grad") as error:
        main.main([*QUICK, "--dataset", "toys.Blobs", "--max_epochs", "1", "--model_name", f"{HERE}Manual"])
    assert any(frame.name == "training_step" and str(frame.path) == __file__ for frame in error.traceback)
    assert error.value.__notes__[0].startswith("nothing is trained: the loss of Manual.training_step has no gradient")


class Forgets(OwnModule):
    """Takes its gradients where there are none."""

    def forward(self, points: Tensor) -> Tensor:
        return self.network(points)


def test_a_step_that_takes_gradients_in_evaluation_is_told_how() -> None:
    with pytest.raises(RuntimeError, match="does not require grad") as error:
        main.main(["--model_name", f"{HERE}Forgets", "--dataset", f"{HERE}Forces", *QUICK])
    assert any(frame.name == "forward" and str(frame.path) == __file__ for frame in error.traceback)
    told = "validation_step runs under torch.no_grad(): what takes gradients belongs in `with torch.enable_grad():`"
    assert error.value.__notes__ == [told]
