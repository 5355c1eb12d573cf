"""Further kinds of training, each against a plain loop: what goes wrong in silence is said, and what can work does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import main
import numpy as np
import pytest
import torch
from data import build_data
from gallery import QUICK, goes_on, predicts
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

HERE = f"{__name__}."
FLAGS = ["--batch_size", "8", "--optimizer", "SGD", "--lr", "0.1", "--lr_scheduler", "constant"]


class Items(Dataset):
    """Four numbers; whether their sum is above 0 and the first above 1, a grade, or a complex sum of them is asked."""

    def __init__(self, ask: str = "class") -> None:
        self.points = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        self.ask, self.sparse = ask, self.points.to_sparse()

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        point = self.points[index]
        if self.ask == "pair":
            return point, point.flip(0)
        if self.ask == "complex":
            return torch.complex(point[:2], point[2:]), torch.complex(point[0], point[3])
        grade = (
            (point.sum() * 1.2 + 2).round().clamp(0, 4) if self.ask == "grade" else (point.sum() > 0) + (point[0] > 1)
        )
        return point, int(grade)


class Sparse(Items):
    """The points as sparse tensors, in memory as well."""

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.sparse[index], super().__getitem__(index)[1]

    @staticmethod
    def collate_fn(items: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([point for point, _ in items]), torch.tensor([target for _, target in items])


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 3)

    def forward(self, points: Tensor) -> Any:
        return self.layer(points)


class OfSparse(Linear):
    def forward(self, points: Tensor) -> Tensor:
        return torch.sparse.mm(points, self.layer.weight.T) + self.layer.bias


class Experts(Linear):
    """Returns how unequal the load of its experts is beside the answer."""

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.layer(points).softmax(1)
        return self.layer(points), 3 * shares.mean(0).square().sum()


class Answers(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


class Auxiliary(Linear):
    """Answers once more in training, as torchvision's Inception and GoogLeNet do."""

    def forward(self, points: Tensor) -> Any:
        logits = self.layer(points)
        return Answers(logits, 2 * self.layer(points.tanh())) if self.training else logits


class Segments(Linear):
    """Answers by name, and once more, as torchvision's FCN and DeepLab do."""

    def forward(self, points: Tensor) -> dict[str, Tensor]:
        return {"out": self.layer(points), "aux": 2 * self.layer(points.tanh())}


class WithAuxiliary(nn.Module):
    def forward(self, output: Any, target: Tensor) -> Tensor:
        if isinstance(output, Tensor):
            return functional.cross_entropy(output, target)
        losses = [functional.cross_entropy(one, target) for one in output]
        return losses[0] + 0.4 * losses[1]


class Balanced(nn.Module):
    def forward(self, output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return functional.cross_entropy(output[0], target) + output[1]


class Contrastive(Linear):
    """Two encoders and a temperature: the loss is of a batch, which has no target."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor(1.0))

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        logits = self.scale.exp() * self.layer(images) @ self.other(texts).T
        return {"loss": functional.cross_entropy(logits, torch.arange(len(logits))), "logits": logits}


class Ordinal(Linear):
    """A logit for each step between two of five grades."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.arange(4.0) - 1.5)

    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points)[:, :1] - self.steps


class Coral(nn.Module):
    """Cao et al., "Rank consistent ordinal regression", 2020."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(output, (target[:, None] > torch.arange(4)).float())


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(2, 1, dtype=torch.complex64)

    def forward(self, signal: Tensor) -> Tensor:
        return self.layer(signal).squeeze(1)


class Gaussian(Linear):
    def forward(self, points: Tensor) -> torch.distributions.Normal:
        mean, scale, _ = self.layer(points).unbind(1)
        return torch.distributions.Normal(mean, scale.exp())


class Mixture(Linear):
    """A share, a mean and a deviation (Bishop, 1994) for each of two normal distributions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, points: Tensor) -> tuple[Tensor, ...]:
        share, mean, deviation = self.layer(points).chunk(3, 1)
        return share.softmax(1), mean, deviation.exp()


class MixtureLikelihood(nn.Module):
    def forward(self, output: tuple[Tensor, ...], target: Tensor) -> Tensor:
        share, mean, deviation = output
        each = torch.distributions.Normal(mean, deviation).log_prob(target[:, None].float())
        return -(share.log() + each).logsumexp(1).mean()


class Lists(Dataset):
    """Two to five documents, and which of them are relevant; a batch is filled up with zeros."""

    def __init__(self, ask: str = "list") -> None:
        self.points = torch.randn(60, 5, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        documents = self.points[index, : 2 + index % 4]
        return {"documents": documents, "target": (documents.sum(1) > 0).float()}

    @staticmethod
    def collate_fn(items: list[Any]) -> dict[str, Tensor]:
        batch = {
            name: nn.utils.rnn.pad_sequence([one[name] for one in items], batch_first=True)
            for name in ("documents", "target")
        }
        lengths = torch.tensor([len(one["target"]) for one in items])
        return batch | {"mask": torch.arange(int(lengths.max())) < lengths[:, None]}


class Scores(Linear):
    def forward(self, documents: Tensor) -> Tensor:
        return self.layer(documents)[..., 0]


class ListNet(nn.Module):
    """Cao et al., "Learning to rank: from pairwise approach to listwise approach", 2007."""

    def forward(self, output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        shares, logs = (one.masked_fill(~mask, -1e9) for one in (target, output))
        return -(shares.softmax(1) * logs.log_softmax(1).masked_fill(~mask, 0)).sum(1).mean()


class Likelihood(nn.Module):
    def forward(self, output: torch.distributions.Normal, target: Tensor) -> Tensor:
        return -output.log_prob(target.float()).mean()


class Kind(NamedTuple):
    """A network and what it is asked, its loss, what the first run says, and what predict and export do."""

    network: type[nn.Module]
    ask: str
    loss: str
    by_hand: Callable[[Any, Any], Tensor]
    said: str = ""
    predict: str | tuple[int, ...] = (6, 3)
    export: str = ""


TENSORS = "predict writes real numbers, and the network gives complex ones"
KINDS = {
    "a part of the loss that no loss takes": Kind(
        Experts,
        "class",
        "cross_entropy",
        lambda net, batch: functional.cross_entropy(net(batch[0])[0], batch[1]),
        "--loss cross_entropy leaves out output 1 of the network: a loss of your own",
    ),
    "an auxiliary classifier": Kind(
        Auxiliary,
        "class",
        "cross_entropy",
        lambda net, batch: functional.cross_entropy(net.layer(batch[0]), batch[1]),
        "--loss cross_entropy leaves out output aux_logits of the network: a loss of your own",
    ),
    "an auxiliary classifier that a loss takes": Kind(
        Auxiliary, "class", f"{HERE}WithAuxiliary", lambda net, batch: WithAuxiliary()(net(batch[0]), batch[1])
    ),
    "an auxiliary answer by name": Kind(
        Segments,
        "class",
        "cross_entropy",
        lambda net, batch: functional.cross_entropy(net.layer(batch[0]), batch[1]),
        "--loss cross_entropy leaves out output aux of the network: a loss of your own",
    ),
    "a part of the loss that one takes": Kind(
        Experts, "class", f"{HERE}Balanced", lambda net, batch: Balanced()(net(batch[0]), batch[1])
    ),
    "contrastive": Kind(Contrastive, "pair", "cross_entropy", lambda net, batch: net(*batch)["loss"], predict=(6, 6)),
    "ordinal": Kind(
        Ordinal,
        "grade",
        f"{HERE}Coral",
        lambda net, batch: Coral()(net(batch[0]), batch[1]),
        "no metric but the loss: the network gives of shape (6, 4), and the target is of shape (6,)",
        (6, 4),
    ),
    "complex": Kind(
        Complex,
        "complex",
        "l1_loss",
        lambda net, batch: functional.l1_loss(net(batch[0]), batch[1]),
        "no metric but the loss",
        TENSORS,
    ),
    "sparse": Kind(
        OfSparse, "sparse", "cross_entropy", lambda net, batch: functional.cross_entropy(net(batch[0]), batch[1])
    ),
    "a mixture": Kind(
        Mixture,
        "class",
        f"{HERE}MixtureLikelihood",
        lambda net, batch: MixtureLikelihood()(net(batch[0]), batch[1]),
        predict=(6, 2),
    ),
    "lists of different length": Kind(
        Scores,
        "list",
        f"{HERE}ListNet",
        lambda net, batch: ListNet()(net(batch["documents"]), batch["target"], batch["mask"]),
        "no metric but the loss: the loss takes mask, and metrics would count what it hides",
        (6, 5),
    ),
    "a distribution": Kind(
        Gaussian,
        "class",
        f"{HERE}Likelihood",
        lambda net, batch: Likelihood()(net(batch[0]), batch[1]),
        predict="predict writes a tensor, and the network gives a Normal",
        export="export takes networks that return tensors, and this one returns a Normal",
    ),
}


DATA = {"sparse": "Sparse", "list": "Lists"}


@pytest.mark.parametrize("name", KINDS)
def test_it_trains_as_a_plain_loop_and_goes_on(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind = KINDS[name]
    argv = ["--model_name", HERE + kind.network.__name__, *FLAGS, "--loss", kind.loss]
    argv += ["--dataset", f"{HERE}{DATA.get(kind.ask, 'Items')}", "--ask", kind.ask]
    told = goes_on(*argv, epochs=1)
    out = capsys.readouterr().out
    assert kind.said in out
    if kind.said.startswith("no metric"):
        assert not any("acc" in key or "mae" in key for key in told)

    data, network = build_data(main.parse([*QUICK, *argv])), kind.network()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for batch in data.train_dataloader():
        optimizer.zero_grad()
        kind.by_hand(network, batch).backward()
        optimizer.step()
    for split in ("val", "test"):
        (batch,) = getattr(data, f"{split}_dataloader")()
        assert told[f"{split}_loss"] == pytest.approx(kind.by_hand(network.eval(), batch).item(), rel=1e-5)
    main.main(["test", "--ckpt_path", "version_0", "--pictures", "true"])
    if isinstance(kind.predict, str):
        refused(capsys, kind.predict, "predict", "--ckpt_path", "version_0")
    else:
        assert predicts().shape == kind.predict
    if kind.export:
        refused(capsys, kind.export, "export", "--ckpt_path", "version_0")


def test_a_run_that_validates_nothing_first_finds_what_are_no_classes_in_its_first_batch() -> None:
    argv = ["--model_name", f"{HERE}Ordinal", "--dataset", f"{HERE}Items", "--ask", "grade", "--loss", f"{HERE}Coral"]
    told = main.main([*QUICK, *argv, *FLAGS, "--num_sanity_val_steps", "0", "--max_epochs", "1"])
    assert not any("acc" in key for key in told)


def refused(capsys: pytest.CaptureFixture[str], why: str, *argv: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main([*argv])
    assert why in capsys.readouterr().err


class Counts(Linear):
    """Divides by the number of its steps, and keeps a mean of its answers, which no checkpoint has."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.mean = 0, torch.zeros(3)
        self.register_buffer("lost", torch.zeros(3), persistent=False)
        self.register_buffer("kept", torch.zeros(3))
        self.width, self.seen = 3, None

    def forward(self, points: Tensor) -> Tensor:
        self.seen = output = self.layer(points)
        if self.training:
            self.steps += 1
            self.mean = self.mean.lerp(output.detach().mean(0), 0.1)
            self.lost += self.mean
            self.kept += self.mean
        return output / (1 + self.steps)


class Keeps(Counts):
    def get_extra_state(self) -> Any:
        return {"steps": self.steps, "mean": self.mean, "lost": self.lost}

    def set_extra_state(self, state: Any) -> None:
        vars(self).update(steps=state["steps"], mean=state["mean"])
        self.lost.copy_(state["lost"])


def test_what_no_checkpoint_keeps_of_a_network_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--dataset", f"{HERE}Items", *FLAGS]
    main.main([*QUICK, "--model_name", f"{HERE}Counts", *argv, "--max_epochs", "2"])
    out = capsys.readouterr().out
    assert out.count("which no checkpoint has: where a step goes on") == 1
    assert "training changes steps, mean, lost, which no checkpoint has" in out
    for path in Path().glob("lightning_logs/*"):
        path.rename(f"{path.name}-before")
    goes_on("--model_name", f"{HERE}Keeps", *argv)
    assert "which no checkpoint has" not in capsys.readouterr().out


class HoldsTensors(Linear):
    """What it holds beside its weights does not change: a sparse graph, a table with gaps, a normalised weight."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.gaps = torch.eye(3).to_sparse(), torch.tensor([1.0, torch.nan])
        self.layer = torch.nn.utils.weight_norm(self.layer)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_what_stays_or_is_computed_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--dataset", f"{HERE}Items", *FLAGS, "--max_epochs", "2"]
    assert "test_loss" in main.main([*QUICK, "--model_name", f"{HERE}HoldsTensors", *argv])
    assert "which no checkpoint has" not in capsys.readouterr().out


def test_each_of_several_outputs_in_a_tuple_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Mixture().state_dict(), "weights.pt")
    flags = ["--model_name", f"{HERE}Mixture", "--dataset", f"{HERE}Items", "--loss", f"{HERE}MixtureLikelihood"]
    argv = ["predict", "--init_from", "weights.pt", *flags, "--format", "npy", "--accelerator", "cpu"]
    data, network = build_data(main.parse(flags)), Mixture()
    network.load_state_dict(torch.load("weights.pt", weights_only=True))
    right = network(torch.stack([point for point, _ in data.split("test")]))
    for number, more in enumerate([["--task", "other"], ["--head_name", "1"], ["--head_name", "2"]]):
        main.main([*argv, *more])
        assert ("of the outputs 0, 1, 2 this is the first" in capsys.readouterr().out) is (number == 0)
        written = np.load(f"lightning_logs/version_{number}/predictions.npy")
        np.testing.assert_allclose(written, right[number].detach(), rtol=1e-5)
    refused(capsys, "--head_name 3; there are: 0, 1, 2", *argv, "--head_name", "3")
