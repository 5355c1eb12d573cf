"""Networks that learn from another one: a checkpoint that only training reads, and a moving mean of themselves."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
from gallery import QUICK, RUN, exports, goes_on, predicts
from model import MInterface
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, mse_loss, normalize
from torch.utils.data import Dataset
from toys import Net

HERE = f"{__name__}."
pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")  # that is the teacher
FLAGS = ["--dataset", f"{HERE}Points", "--batch_size", "16"]
ENTRIES = ["--dataset", f"{HERE}Entries", "--batch_size", "16"]


class Points(Dataset):
    """A point, a noisy view of it, and its class."""

    num_classes, num_features = 3, 2

    def __init__(self) -> None:
        self.points = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        self.views = self.points + 0.1 * torch.randn(60, 2, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.points[index], index % 3


class Entries(Points):
    def __getitem__(self, index: int) -> Any:
        return {"points": self.points[index], "labels": index % 3}


class Views(Points):
    def __getitem__(self, index: int) -> Any:
        return self.points[index], self.views[index]


def layers(hidden: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def read(path: Any) -> Net:
    """The teacher, a run of toys.Net."""
    weights = torch.load(path, weights_only=True)["state_dict"]
    teacher = Net(2, 3)
    teacher.load_state_dict({name.removeprefix("network."): one for name, one in weights.items()})
    return teacher.eval().requires_grad_(False)


def distance(logits: Tensor, wanted: Tensor) -> Tensor:
    return 4 * kl_div((logits / 2).log_softmax(1), (wanted / 2).softmax(1), reduction="batchmean")


class Student(MInterface):
    """Hinton et al., 2015, with a teacher that only training has: out of the network, in a list."""

    def __init__(self, teacher: Path = Path(), **kwargs: Any) -> None:
        super().__init__(layers(), task="multiclass", **kwargs)
        self.path = teacher

    def on_fit_start(self) -> None:
        self.teacher = [read(self.path).to(self.device)]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0])
        return cross_entropy(logits, batch[1]) + distance(logits, self.teacher[0](batch[0]))


class Within(MInterface):
    """The same with the teacher as a part of the network."""

    def __init__(self, teacher: Path = Path(), **kwargs: Any) -> None:
        super().__init__(layers(), task="multiclass", **kwargs)
        self.teacher = read(teacher)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0])
        return cross_entropy(logits, batch[1]) + distance(logits, self.teacher(batch[0]))


class PlainStudent(nn.Module):
    """A plain network with its teacher, whose weights it reads once, when a run begins."""

    def __init__(self, teacher: Path = Path()) -> None:
        super().__init__()
        self.layers, self.teacher, self.path = layers(), Net(2, 3).eval().requires_grad_(False), teacher

    def fetch_weights(self) -> None:
        self.teacher.load_state_dict(read(self.path).state_dict())

    def forward(self, points: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.layers(points)
        if labels is None or not self.training:
            return logits if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}
        return {"loss": cross_entropy(logits, labels) + distance(logits, self.teacher(points)), "logits": logits}


@pytest.fixture
def teacher() -> str:
    """A checkpoint of another run, outside of lightning_logs."""
    main.main([*QUICK, *FLAGS, "--model_name", "toys.Net", "--max_epochs", "2", "--lr", "0.1", "--run_name", "teacher"])
    RUN.joinpath("checkpoints/last.ckpt").rename("teacher.ckpt")
    RUN.rename("run of the teacher")
    return "teacher.ckpt"


class Keep(Callback):
    """Keeps the first weights, and the batches."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.batches: list[Any] = []
        self.first = {name: one.clone() for name, one in module.state_dict().items()}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)


def checkpoint() -> dict[str, Any]:
    return torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)


def same(net: nn.Module, prefix: str) -> None:
    for name, one in net.state_dict().items():
        torch.testing.assert_close(checkpoint()["state_dict"][prefix + name], one, rtol=1e-4, atol=1e-6)


STUDENTS = {"Student": "network.", "Within": "network.", "PlainStudent": "network.layers."}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_learns_what_a_plain_loop_does(name: str, teacher: str) -> None:
    keep = Keep()
    flags = ["--model_name", HERE + name, "--teacher", teacher, "--lr_scheduler", "constant", "--lr", "0.01"]
    main.main([*QUICK, *(ENTRIES if name == "PlainStudent" else FLAGS), *flags, "--max_epochs", "2"], [keep])
    net, fixed = layers(), read(teacher)
    prefix = STUDENTS[name]
    net.load_state_dict({key: keep.first[prefix + key] for key in net.state_dict()})
    adam = torch.optim.Adam(net.parameters(), 0.01)
    for points, labels in (one.values() if isinstance(one, dict) else one for one in keep.batches):
        adam.zero_grad()
        (cross_entropy(net(points), labels) + distance(net(points), fixed(points))).backward()
        adam.step()
    same(net, prefix)


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("more", [[], ["--ema_decay", "0.9"]])
def test_it_goes_on_and_only_training_reads_the_teacher(name: str, more: list[str], teacher: str, capsys) -> None:
    data = ENTRIES if name == "PlainStudent" else FLAGS
    told = goes_on(*data, "--model_name", HERE + name, "--teacher", teacher, *more, batch=4)
    kept = {key for key in checkpoint()["state_dict"] if "teacher" in key}
    assert bool(kept) is (name != "Student")
    for key in kept:
        wanted = torch.load(teacher, weights_only=True)["state_dict"]
        torch.testing.assert_close(  # an average of equal weights is rounded
            checkpoint()["state_dict"][key],
            wanted["network." + key.rpartition("teacher.")[2]],
            rtol=1e-6 if more else 0,
            atol=0,
        )
    assert len(checkpoint()["optimizer_states"][0]["state"]) == 4  # no weight of the teacher
    Path(teacher).rename("moved.ckpt")
    if name == "Within":
        for action in ("test", "predict", "export"):
            capsys.readouterr()
            with pytest.raises(SystemExit, match="2"):
                main.main([action, "--ckpt_path", "version_0"])
            assert "--teacher teacher.ckpt: there is no such file, which" in capsys.readouterr().err
        assert (
            main.main(["test", "--ckpt_path", "version_0", "--teacher", "moved.ckpt"])["test_loss"] == told["test_loss"]
        )
        return
    assert main.main(["test", "--ckpt_path", "version_0"])["test_loss"] == told["test_loss"]
    network, points = exports(), Points().points
    logits = network(points=points) if name == "PlainStudent" else network(points)
    shares = predicts()
    assert np.abs(logits.softmax(1).detach().numpy()[:, None] - shares).sum(2).min(0).max() < 1e-5
    if name == "Student":
        with pytest.raises(FileNotFoundError):
            main.main(["--ckpt_path", "version_0", "--max_epochs", "3"])
    main.main(["--ckpt_path", "version_0", "--max_epochs", "3", "--teacher", "moved.ckpt"])
    assert checkpoint()["epoch"] == 2


class BYOL(MInterface):
    """Grill et al., 2020: predicts what a moving mean of the network gives for another view."""

    def __init__(self, tau: float = 0.9, **kwargs: Any) -> None:
        super().__init__(nn.Linear(2, 4), metrics=(), **kwargs)
        self.predictor, self.tau = nn.Linear(4, 4), tau
        self.target = deepcopy(self.network).requires_grad_(False)

    def step(self, batch: Any, stage: str) -> Tensor:
        pairs = ((batch[0], batch[1]), (batch[1], batch[0]))
        loss = sum(
            mse_loss(normalize(self.predictor(self(one))), normalize(self.target(other))) for one, other in pairs
        )
        self.metrics[f"{stage}_loss"].update(loss.detach(), len(batch[0]))
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        for mean, weight in zip(self.target.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(weight.detach(), 1 - self.tau)


def test_a_moving_teacher_goes_on_and_is_that_of_a_plain_loop() -> None:
    flags = ["--model_name", f"{HERE}BYOL", "--dataset", f"{HERE}Views", "--batch_size", "16", "--lr", "0.01"]
    goes_on(*flags, batch=4)
    assert predicts().shape == (6, 4)
    assert exports()(Points().points).shape == (60, 4)
    keep = Keep()
    main.main(
        [*QUICK, *flags, "--lr_scheduler", "constant", "--max_epochs", "2", "--default_root_dir", "plain"], [keep]
    )
    online, predictor, target = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(2, 4)
    for part, prefix in ((online, "network."), (predictor, "predictor."), (target, "target.")):
        part.load_state_dict({name: keep.first[prefix + name] for name in part.state_dict()})
    adam = torch.optim.Adam([*online.parameters(), *predictor.parameters()], 0.01)
    for left, right in keep.batches:
        with torch.no_grad():
            wanted = [normalize(target(one)) for one in (right, left)]
        given = [normalize(predictor(online(one))) for one in (left, right)]
        adam.zero_grad()
        sum(mse_loss(*pair) for pair in zip(given, wanted, strict=True)).backward()
        adam.step()
        with torch.no_grad():
            for mean, weight in zip(target.parameters(), online.parameters(), strict=True):
                mean.copy_(0.9 * mean + 0.1 * weight)
    last = torch.load(Path("plain") / RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for part, prefix in ((online, "network."), (predictor, "predictor."), (target, "target.")):
        for name, one in part.state_dict().items():
            torch.testing.assert_close(last[prefix + name], one, rtol=1e-4, atol=1e-6)


def test_freezing_a_part_leaves_a_teacher_frozen(teacher: str) -> None:
    flags = ["--model_name", f"{HERE}Within", "--teacher", teacher, "--freeze", "0", "--max_epochs", "1"]
    main.main([*QUICK, *FLAGS, *flags, "--weight_decay", "0.1"])
    assert len(checkpoint()["optimizer_states"][0]["param_groups"][0]["params"]) == 2
