"""Time of a training step over the step of a plain loop written by hand, on the CPU, from processes run in turn.

python benchmarks/step.py PROJECT [ROUNDS] [--long] [FLAGS OF MAIN.PY]
"""

import ctypes
import statistics
import sys
import tempfile
import time
from pathlib import Path

from turns import arguments_of, in_turn, measure, table

ITEMS, BATCH, WARM, STEPS = 59_904, 64, 100, {"lenet": 400, "dense": 800}
TUNED = "tuned loop: fused Adam, channels_last, malloc keeps its memory"
PLAIN = "plain loop, data in memory as one tensor"
PROJECT = "this project, all of its defaults, with a progress bar"
VARIANTS = {"plain": PLAIN, "tuned": TUNED, "project": PROJECT}
LONG = {
    "rows": "this project, a dataset with `return self.images[i], self.targets[i]`",
    "items": "this project, the same dataset item by item",
    "torchvision": "plain loop, torchvision's MNIST and a DataLoader",
    "lightning": "Lightning's defaults on the same loader, torchmetrics and self.log",
}


def write_mnist(folder: Path) -> None:
    """Noise in the format and (nearly) the size of MNIST."""
    import numpy as np

    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, number in (("train", ITEMS), ("t10k", 640)):
        images = np.random.default_rng(0).integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = (np.arange(number) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / name).write_bytes(head + array.tobytes())


def network(name: str):
    """LeNet of the project, or a dense network whose step is all overhead."""
    from torch import nn

    if name == "lenet":
        from model.lenet import LeNet

        return LeNet(1, 10, 28)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def dense(in_channels: int, num_classes: int, img_size: int):
    """The dense network, as the project asks for one."""
    return network("dense")


class Rows:
    """MNIST's format as a class that a user writes: tensors in memory, an item at a time."""

    num_classes, in_channels, img_size = 10, 1, 28

    def __init__(self, train: bool, data_dir: str) -> None:
        from data.mnist import MNIST

        files = MNIST(train, data_dir)
        self.images, self.targets = files.__getitems__(list(range(len(files))))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int):
        return self.images[i], self.targets[i]


class Items(Rows):
    """The same, with an index that is no array: no whole batches."""

    def __getitem__(self, i: int):
        return self.images[int(i)], self.targets[int(i)]


def keep_memory() -> None:
    """Has malloc keep what a step frees."""
    for option, size in {-1: 2**29, -2: 2**26, -3: 2**25}.items():  # trim threshold, top pad, mmap threshold
        ctypes.CDLL("libc.so.6").mallopt(option, size)


def by_hand(name: str, variant: str, data_dir: Path) -> float:
    """Seconds a step of a loop without Lightning."""
    import torch
    from data.mnist import MNIST
    from torch.nn.functional import cross_entropy

    torch.manual_seed(0)
    tuned = variant == "tuned"
    if tuned:
        keep_memory()
    model = network(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=tuned)
    if tuned:
        model = model.to(memory_format=torch.channels_last)
    if variant == "torchvision":
        batches = torchvision_loader(data_dir)
    else:
        images, targets = MNIST(True, str(data_dir)).__getitems__(list(range(ITEMS)))
        order = torch.randperm(ITEMS).split(BATCH)
        batches = ((images[part], targets[part]) for part in order)
    for step, (some, target) in enumerate(batches):
        if step == WARM:
            began = time.perf_counter()
        if step == WARM + STEPS[name]:
            break
        if tuned:
            some = some.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        cross_entropy(model(some), target).backward()
        optimizer.step()
    return (time.perf_counter() - began) / STEPS[name]


def torchvision_loader(data_dir: Path):
    """What the tutorials write."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import MNIST

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)])
    return DataLoader(MNIST(str(data_dir), transform=transform), BATCH, shuffle=True)


def timer(warm: int = WARM):
    """A callback that times the steps between the two marks, the one of number `warm` and the last one."""
    from pytorch_lightning import Callback

    class Timer(Callback):
        began = ended = 0.0

        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            if batch_idx == warm:
                Timer.began = time.perf_counter()
            if batch_idx == trainer.num_training_batches - 1:
                Timer.ended = time.perf_counter()

    return Timer()


def run_project(argv: list[str], *watching, where: tuple[str, ...] = ("cpu", "--num_threads", "1")) -> None:
    """A command line of the project, in this process, by default on the CPU, with callbacks that watch it."""
    import main

    load_callbacks = main.load_callbacks
    main.load_callbacks = lambda *args, **options: [*watching, *load_callbacks(*args, **options)]
    main.main([*argv, "--accelerator", *where])


def with_lightning(name: str, data_dir: Path) -> float:
    """Seconds a step of Lightning as it comes."""
    import pytorch_lightning as pl
    import torch
    import torchmetrics
    from torch.nn.functional import cross_entropy

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.acc = network(name), torchmetrics.Accuracy("multiclass", num_classes=10)

        def training_step(self, batch, batch_idx):
            logits = self.network(batch[0])
            loss = cross_entropy(logits, batch[1])
            self.acc(logits, batch[1])
            self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            self.log("train_acc", self.acc, on_epoch=True, prog_bar=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=2e-3)

    clock = timer()
    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=WARM + STEPS[name] + 1, accelerator="cpu", callbacks=[clock], devices=1
    )
    trainer.fit(Module(), torchvision_loader(data_dir))
    return (clock.ended - clock.began) / STEPS[name]


def with_project(name: str, data_dir: Path, extra: list[str], dataset: str = "mnist") -> float:
    """Seconds a step of the project, from its command line."""
    import engine  # noqa: F401  first, as main.py does: it says which imports wait until they are used

    clock = timer()
    sys.modules["step"] = sys.modules["__main__"]
    argv = ["--model_name", "lenet" if name == "lenet" else "step.dense", "--dataset", dataset, "--max_epochs", "1"]
    argv += ["--data_dir", str(data_dir), "--enable_progress_bar", "true"]
    argv += ["--limit_train_batches", str(WARM + STEPS[name] + 1), *extra]
    run_project(argv, clock)
    return (clock.ended - clock.began) / STEPS[name]


def once(name: str, variant: str, data_dir: Path, extra: list[str]) -> float:
    """One measurement, in this process."""
    if variant in ("project", "rows", "items"):
        dataset = "mnist" if variant == "project" else f"step.{variant.title()}"
        return with_project(name, data_dir, extra, dataset)
    import torch

    torch.set_num_threads(1)
    return with_lightning(name, data_dir) if variant == "lightning" else by_hand(name, variant, data_dir)


def main() -> None:
    """The command line."""
    arguments, extra = arguments_of(__doc__)
    if arguments.once:
        name, variant, data_dir, *extra = arguments.once
        print("NUMBERS", once(name, variant, Path(data_dir), extra))
        return
    variants = VARIANTS | (LONG if arguments.long else {})
    with tempfile.TemporaryDirectory() as scratch:
        write_mnist(Path(scratch))
        for name in arguments.only or ["lenet", "dense"]:
            ways = {
                variant: lambda name=name, variant=variant: measure(
                    "step.py", arguments.project, name, variant, scratch, *extra
                )[0]
                for variant in variants
            }
            found = in_turn(arguments.rounds, ways)
            plain = statistics.median(found["plain"]) * 1e3
            table(f"{name}: a step over the plain one ({plain:.2f} ms)", found, variants, "plain")


if __name__ == "__main__":
    main()
