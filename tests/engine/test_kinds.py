"""Kinds of training beyond classifiers: each trains, is stopped and goes on exactly, is tested, predicted, exported."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import main
import pytest
import torch
from model import MInterface
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import Dataset

HERE = "test_kinds."
FLAGS = ["--accelerator", "cpu", "--num_workers", "0", "--batch_size", "4", "--max_epochs", "2"]
FLAGS += ["--val_fraction", "0.2", "--test_fraction", "0.2"]


class Toy(Dataset):
    """20 items of random numbers."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.items = [self.make(index) for index in range(20)]

    def make(self, index: int) -> Any:
        raise NotImplementedError

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def whole(self, most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=self.random)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Triplets(Toy):
    def make(self, index: int) -> Any:
        anchor = self.normal(4)
        return anchor, anchor + 0.1 * self.normal(4), self.normal(4)


class TripletNet(MInterface):
    def __init__(self, dim: int = 3, **kwargs: Any) -> None:
        super().__init__(nn.Linear(4, dim), metrics=(), **kwargs)

    def step(self, batch: Any, stage: str) -> Tensor:
        loss = functional.triplet_margin_loss(*(self(one) for one in batch))
        self.metrics[f"{stage}_loss"].update(loss.detach(), len(batch[0]))
        return loss


class Views(Toy):
    def make(self, index: int) -> Any:
        point = self.normal(4)
        return point + 0.1 * self.normal(4), point + 0.1 * self.normal(4)


class SimCLR(MInterface):
    """Near views near, others apart."""

    def __init__(self, dim: int = 3, **kwargs: Any) -> None:
        super().__init__(nn.Linear(4, dim), metrics=(), **kwargs)

    def step(self, batch: Any, stage: str) -> Tensor:
        left, right = (functional.normalize(self(view)) for view in batch)
        loss = functional.cross_entropy(left @ right.T / 0.2, torch.arange(len(left)))
        self.metrics[f"{stage}_loss"].update(loss.detach(), len(left))
        return loss


class Boxes(Toy):
    def make(self, index: int) -> Any:
        image, corner = 0.1 * self.normal(3, 32, 40 + 8 * (index % 2)), self.whole(16, 2)
        box = torch.cat([corner, corner + 12]).float()[None]
        return image, {"boxes": box, "labels": torch.ones(1, dtype=torch.long)}

    @staticmethod
    def collate_fn(items: list[Any]) -> Any:
        return tuple(zip(*items, strict=True))


class Detector(nn.Module):
    """A small Faster R-CNN of torchvision."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.detection import FasterRCNN
        from torchvision.models.detection.rpn import AnchorGenerator
        from torchvision.ops import MultiScaleRoIAlign

        body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        body.out_channels = 8
        pool = MultiScaleRoIAlign(["0"], 3, 2)
        anchors = AnchorGenerator(((8, 16),), ((1.0,),))
        self.net = FasterRCNN(
            body, 2, min_size=32, max_size=64, rpn_anchor_generator=anchors, box_roi_pool=pool, box_detections_per_img=5
        )

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        return self.net(list(images), list(targets) if targets is not None else None)


class Texts(Toy):
    def make(self, index: int) -> Any:
        row = self.whole(7, 6)
        return row[:-1], row[1:]


class GPT(nn.Module):
    """One block; logits (B, T, V)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(7, width), nn.Parameter(torch.zeros(5, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True)
        self.head = nn.Linear(width, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.head(self.block(self.embedding(tokens) + self.position, src_mask=mask, is_causal=True))


class Signals(Toy):
    def make(self, index: int) -> Any:
        return {"signal": self.normal(8)}


class Denoiser(nn.Module):
    """DDPM: returns its own loss, of noise that it draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, signal: Tensor) -> dict[str, Tensor]:
        noise, level = torch.randn_like(signal), torch.rand(len(signal), 1, device=signal.device)
        mixed = (1 - level).sqrt() * signal + level.sqrt() * noise
        return {"loss": (self.layers(torch.cat([mixed, level], 1)) - noise).square().mean()}


class Series(Toy):
    def make(self, index: int) -> Any:
        series = self.normal(10).cumsum(0)
        return {"past": series[:7], "hour": self.whole(24, 1)[0], "station": f"s{index}", "target": series[7:]}


class Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hours, self.layer = nn.Embedding(24, 4), nn.Linear(11, 3)

    def forward(self, past: Tensor, hour: Tensor) -> Tensor:
        return self.layer(torch.cat([past, self.hours(hour)], 1))


class Sequences(Toy):
    def make(self, index: int) -> Any:
        return self.normal(1 + index % 4, 3), index % 2

    @staticmethod
    def collate_fn(items: list[Any]) -> Any:
        sequences, targets = zip(*items, strict=True)
        return pack_sequence(sequences, enforce_sorted=False), torch.tensor(targets)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, sequences: PackedSequence) -> Tensor:
        states, lengths = pad_packed_sequence(self.gru(sequences)[0], batch_first=True)
        return self.head(states[torch.arange(len(lengths)), lengths - 1])


class Tags(Toy):
    def make(self, index: int) -> Any:
        tokens = self.whole(9, 2 + index % 3)
        return tokens, tokens % 3

    @staticmethod
    def collate_fn(items: list[Any]) -> Any:
        tokens, tags = zip(*items, strict=True)
        return pad_sequence(tokens, batch_first=True), pad_sequence(tags, batch_first=True, padding_value=-100)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens)


class Graph:
    """Graphs laid side by side, as PyTorch Geometric does."""

    def __init__(self, x: Tensor, graph: Tensor, y: Tensor) -> None:
        self.x, self.graph, self.y, self.num_graphs = x, graph, y, len(y)

    def to(self, device: Any) -> "Graph":
        return Graph(self.x.to(device), self.graph.to(device), self.y.to(device))


class Graphs(Toy):
    def make(self, index: int) -> Any:
        return self.normal(2 + index % 3, 4), index % 2

    @staticmethod
    def collate_fn(items: list[Any]) -> Graph:
        nodes, targets = zip(*items, strict=True)
        sizes = torch.tensor([len(one) for one in nodes])
        return Graph(torch.cat(nodes), torch.arange(len(nodes)).repeat_interleave(sizes), torch.tensor(targets))


class GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, batch: Graph) -> Tensor:
        return torch.zeros(batch.num_graphs, 2, device=batch.x.device).index_add(0, batch.graph, self.layer(batch.x))


class Points(Toy):
    def make(self, index: int) -> Any:
        point = self.normal(3)
        return point, point.sum()


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points)


class Stop(Callback):
    """Sends SIGTERM in the sixth step."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == 5:
            os.kill(os.getpid(), signal.SIGTERM)


# model, dataset, further flags, and what predict and export say where they refuse.
KINDS: dict[str, tuple[str, str, list[str], str, str]] = {
    "triplets": ("TripletNet", "Triplets", [], "", ""),
    "simclr": ("SimCLR", "Views", [], "", ""),
    "detection": (
        "Detector",
        "Boxes",
        [],
        "predict writes a tensor, and the network gives a list",
        "inputs are tensors",
    ),
    "gpt": ("GPT", "Texts", [], "--format npy or pt", ""),
    "ddpm": (
        "Denoiser",
        "Signals",
        [],
        "predict writes a tensor, and the network gives a dict of loss",
        "draws random numbers",
    ),
    "forecast": ("Forecast", "Series", ["--loss", "mse_loss"], "", ""),
    "packed": ("Recurrent", "Sequences", [], "", "inputs are tensors"),
    "tagging": ("Tagger", "Tags", [], "--format npy or pt", ""),
    "graphs": ("GraphNet", "Graphs", [], "", "inputs are tensors"),
    "lbfgs": (
        "Line",
        "Points",
        ["--loss", "mse_loss", "--optimizer", "LBFGS", "--lr", "0.1", "--precision", "64-true"],
        "",
        "",
    ),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return all(map(same, one, other)) if isinstance(one, (list, tuple)) else one == other


def refusal(run: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused, "" where it is not."""
    capsys.readouterr()
    try:
        run()
    except SystemExit:
        text = capsys.readouterr().err.strip()
        assert len(text.splitlines()) == 1, text
        return text
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_trains_goes_on_exactly_is_tested_predicted_and_exported(kind: str, capsys) -> None:
    model, dataset, more, predicts, exports = KINDS[kind]
    flags = ["--model_name", HERE + model, "--dataset", HERE + dataset, *FLAGS, *more]
    whole = main.main(flags)
    with pytest.raises(SystemExit):
        main.main(flags, callbacks=[Stop()])
    assert main.main([*flags, "--ckpt_path", "last"]) == whole
    runs = [Path(f"lightning_logs/version_{number}/checkpoints/last.ckpt") for number in (0, 1)]
    once, twice = (torch.load(path, weights_only=True) for path in runs)
    assert same(once["state_dict"], twice["state_dict"])
    assert same(once["optimizer_states"], twice["optimizer_states"])
    precision = ["--precision", "64-true"] if "64-true" in more else []
    tested = main.main(["test", "--ckpt_path", "lightning_logs/version_0", *precision])
    assert whole["test_loss"] == tested["test_loss"]
    said = refusal(lambda: main.main(["predict", "--ckpt_path", "last"]), capsys)
    assert predicts in said
    assert bool(predicts) == bool(said), said
    said = refusal(lambda: main.main(["export", "--ckpt_path", "last"]), capsys)
    assert exports in said
    assert bool(exports) == bool(said), said


def test_lbfgs_takes_the_steps_of_a_plain_loop_and_counts_a_batch_once() -> None:
    first: list[Any] = []

    class Keep(Callback):
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            first.append({name: one.double().clone() for name, one in module.network.state_dict().items()})

    model, dataset, more, *_ = KINDS["lbfgs"]
    flags = ["--model_name", HERE + model, "--dataset", HERE + dataset, *FLAGS[:4], *more, "--batch_size", "20"]
    flags += ["--val_fraction", "0", "--test_fraction", "0", "--max_epochs", "3", "--lr_scheduler", "constant"]
    metrics = main.main(flags, callbacks=[Keep()])
    points, targets = (torch.stack(one).double() for one in zip(*Points(), strict=True))
    net = Line().double()
    net.load_state_dict(first[0])
    optimizer, losses = torch.optim.LBFGS(net.parameters(), lr=0.1), list[float]()
    for _ in range(3):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = functional.mse_loss(net(points).squeeze(1), targets)
            loss.backward()
            losses.append(loss.item())
            return loss

        start = len(losses)
        optimizer.step(closure)
    assert metrics["train_loss"] == pytest.approx(losses[start], rel=1e-4)
    weights = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(weights["network.layer.weight"], net.layer.weight.detach(), rtol=1e-12, atol=1e-14)
