"""A toy dataset for each way to make the parts, and toy networks: what the tests train."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from model import MInterface
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from torchmetrics import Metric, SumMetric


class Blobs(Dataset):
    """Points around three centres, with noise that is drawn anew whenever an item is fetched."""

    num_classes = 3

    def __init__(self, num_items: int = 90, noise: float = 0.3, broken_item: int = -1, stuck_item: int = -1) -> None:
        """Makes the points.

        Args:
            num_items: how many.
            noise: standard deviation around a centre.
            broken_item: an item that raises.
            stuck_item: an item that never comes.
        """
        self.num_items, self.noise, self.broken_item = num_items, noise, broken_item
        self.stuck_item = stuck_item
        self.num_features = 2
        self.targets = [index % 3 for index in range(num_items)]

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.broken_item:
            raise ValueError(f"item {index} is broken")
        if index == self.stuck_item:
            time.sleep(1000)
        target = self.targets[index]
        centre = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]][target])
        return centre + self.noise * torch.randn(2), target


class Named(Blobs):
    """The same with a name for each class and each item."""

    classes = ["a", "b", "c"]

    def __init__(self, num_items: int = 90, noise: float = 0.3) -> None:
        super().__init__(num_items, noise)
        self.ids = [f"point/{index}" for index in range(num_items)]


class FromFile(Dataset):
    """The points of items.txt, lines of a name and a class."""

    num_features = 2

    def __init__(self, knows: str = "ids", num_classes: int = 3, data_dir: str = ".") -> None:
        """knows: "ids" or "targets" of all items, or nothing."""
        rows = [line.split() for line in Path(data_dir, "items.txt").read_text().splitlines()]
        self.num_classes, self.items = num_classes, [(name, int(target)) for name, target in rows]
        if knows == "ids":
            self.ids = [f"{data_dir}/{name}" for name, _ in self.items]
        if knows == "targets":
            self.targets = [target for _, target in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        name, target = self.items[index]
        return torch.tensor([float(target), len(name) / 10]), target


class Sums(Dataset):
    """Targets that are numbers, in memory."""

    num_features, scale = 2, 1.0

    def __init__(self) -> None:
        self.inputs = torch.linspace(-1, 1, 200).view(100, 2)
        self.targets = self.inputs.sum(1, keepdim=True) * self.scale

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class BlobsInParts(Blobs):
    """The same, one object a part."""

    def __init__(self, split: str, num_items: int = 90) -> None:
        super().__init__(num_items)
        self.split = split


class BlobsForTraining(Blobs):
    """The same, in torchvision's way."""

    def __init__(self, train: bool, num_items: int = 90) -> None:
        super().__init__(num_items)
        self.train = train


class Deadly(Blobs):
    """The same, which kills the process that fetches it, once, as soon as a checkpoint is there.

    Started again, the second process is late: the first one looks for it before it can be found.
    """

    def __init__(self, num_items: int = 90) -> None:
        super().__init__(num_items)
        time.sleep(2 if Path("dead").exists() and os.environ.get("RANK") == "1" else 0)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if list(Path().rglob("last.ckpt")):
            with contextlib.suppress(FileExistsError):
                Path("dead").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Stream(IterableDataset):
    """The same as a stream that knows its place."""

    num_classes = 3
    num_features = 2

    def __init__(self, split: str, num_items: int = 30) -> None:
        self.items, self.place = Blobs(num_items), 0

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self):
        while self.place < len(self.items):
            self.place += 1
            yield self.items[self.place - 1]
        self.place = 0

    def state_dict(self) -> dict:
        return {"place": self.place}

    def load_state_dict(self, state: dict) -> None:
        self.place = state["place"]


class Endless(Stream):
    """A stream that does not say its length."""

    def __len__(self) -> int:
        raise TypeError("endless")


class Forgetful(IterableDataset):
    """A stream that does not know its place."""

    num_classes = 3
    num_features = 2

    def __init__(self, split: str, num_items: int = 32) -> None:
        self.items = Blobs(num_items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self):
        return (self.items[place] for place in range(len(self.items)))


class Net(nn.Module):
    """One hidden layer."""

    def __init__(self, num_features: int, num_classes: int, hidden_dim: int = 8, dropout: float = 0.1) -> None:
        """Builds it.

        Args:
            hidden_dim: width of the hidden layer.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, num_classes)
        )

    def forward(self, points: Tensor) -> Tensor:
        self.each_forward()
        return self.layers(points)

    def each_forward(self) -> None:
        """A place where a test can look at the run from within."""


class ImageBlobs(Blobs):
    """The same points, each as a picture of two channels."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        point, target = super().__getitem__(index)
        return point[:, None, None].expand(2, 4, 4).clone(), target


class ConvNet(nn.Module):
    """A convolution; what it finds is laid flat by `reshape`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).reshape(len(images), 16))


class ViewNet(ConvNet):
    """The same by `view`, which wants the channels first."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).view(len(images), 16))


class Lopsided(Blobs):
    """Most items are of one class."""

    def __init__(self, num_items: int = 90) -> None:
        super().__init__(num_items)
        self.targets = [0 if index % 9 else 1 + index // 9 % 2 for index in range(num_items)]


class Numbers(Dataset):
    """A number to be told from two others."""

    num_features = 2

    def __init__(self, num_items: int = 90) -> None:
        self.points = torch.rand(num_items, 2, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.points)

    def target(self, point: Tensor) -> Tensor:
        """What is to be told of a point."""
        return point.sum()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.target(self.points[index])


class YesNo(Numbers):
    """A question to be answered."""

    def target(self, point: Tensor) -> Tensor:
        return (point.sum() > 1).float()


class Labels(Numbers):
    """Three questions to be answered."""

    def target(self, point: Tensor) -> Tensor:
        return torch.stack([point[0] > 0.5, point[1] > 0.5, point.sum() > 1]).float()


class Pictures(Numbers):
    """Pictures to be made less noisy."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        clean = self.points[index].repeat_interleave(128).reshape(1, 16, 16)
        return clean + 0.1 * torch.randn(1, 16, 16), clean


class Line(nn.Module):
    """A number, or the logit of an answer."""

    def __init__(self, num_features: int = 2, outputs: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(num_features, outputs)

    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points)


class Share(Line):
    """The chance of an answer."""

    def forward(self, points: Tensor) -> Tensor:
        return super().forward(points).sigmoid()


class Tags(Line):
    """The logits of three answers."""

    def __init__(self, num_features: int = 2) -> None:
        super().__init__(num_features, outputs=3)


class Blur(nn.Module):
    """A convolution from picture to picture."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layer(pictures)


def twice(output: Tensor, target: Tensor, factor: float = 2.0) -> Tensor:
    """A loss of one's own."""
    return factor * nn.functional.cross_entropy(output, target)


class ImagePairs(ImageBlobs):
    """Pictures that should come out as they went in."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        image, _ = super().__getitem__(index)
        return image, image


class ImageNet(nn.Module):
    """From a picture of two channels to another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


class Wide(nn.Module):
    """Two layers that two devices can share."""

    def __init__(self, num_features: int, num_classes: int, hidden_dim: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(num_features, hidden_dim), nn.Linear(hidden_dim, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        return self.down(self.up(points).relu())


class Shared(Wide):
    """The same, which says how."""

    def parallelize(self, mesh: Any) -> None:
        """Each device has half of the hidden units."""
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        parallelize_module(self, mesh["tensor_parallel"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        held = sum(one.to_local().numel() for one in self.parameters())
        print(f"rank {mesh.get_rank()} has {held} of {sum(one.numel() for one in self.parameters())} weights")


class Tally(MInterface):
    """A system on such a network, which counts the items that it has seen."""

    def __init__(self, num_features: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(Shared(num_features, num_classes), **kwargs)
        self.metrics.update({f"{stage}_items": SumMetric() for stage in ("train", "val", "test")})

    def step(self, batch: Any, stage: str) -> Tensor:
        self.metrics[f"{stage}_items"].update(len(batch[1]))
        return super().step(batch, stage)


class Cracked(Wide):
    """The same layers; in the third step a gradient is no number, of which the second of two devices has that part."""

    steps = 0

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.up(points)
        self.steps += self.training
        if self.training and self.steps == 3:
            hidden.register_hook(lambda one: one.index_fill(1, torch.tensor([one.shape[1] - 1]), torch.nan))
        return self.down(hidden.relu())


class Slow(Blobs):
    """The same, for which one process, or the second of several, takes its time while there is a file `slow`."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ]
        if [*ranks, "1"][0] == "1" and Path("slow").exists():
            time.sleep(0.05)
        return super().__getitem__(index)


class Late(Blobs):
    """The same, which a SLURM job waits for in vain until it is started again."""

    def __init__(self, num_items: int = 90) -> None:
        super().__init__(num_items)
        if "SLURM_RESTART_COUNT" not in os.environ:
            Path(f"late-{os.environ['SLURM_JOB_ID']}").touch()
            time.sleep(1000)


class Spread(MInterface):
    """A system whose loss is its own: how far its answers are from their targets, and no further metric."""

    def __init__(self, num_features: int = 2, **kwargs: Any) -> None:
        super().__init__(Line(num_features), metrics=(), **kwargs)

    def step(self, batch: Any, stage: str) -> Tensor:
        points, target = batch
        loss = (self(points).squeeze(-1) - target).abs().mean()
        self.metrics[f"{stage}_loss"].update(loss.detach(), len(target))
        return loss


class DefectRecall(Metric):
    """The share of the items of class 1 that are found."""

    higher_is_better = True

    def __init__(self, num_classes: int, wanted: int = 1) -> None:
        super().__init__()
        self.wanted = wanted
        for name in ("found", "there"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """output: logits (B, C). target: classes (B,)."""
        self.found += ((output.argmax(1) == self.wanted) & (target == self.wanted)).sum()
        self.there += (target == self.wanted).sum()

    def compute(self) -> Tensor:
        return self.found / self.there


class Acc(DefectRecall):
    """The same by a name that is taken."""


class Yield(DefectRecall):
    """The same, and does not say whether more is better."""

    higher_is_better = None


def trapezoid(done: float) -> float:
    """Up, level, down."""
    return min(1.0, 4 * done, 4 * (1 - done))
