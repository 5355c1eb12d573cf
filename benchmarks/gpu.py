"""A step on a GPU in bfloat16, compiled, over a loop tuned by hand, and how often a step waits for the GPU.

python benchmarks/gpu.py PROJECT [ROUNDS] [--only lenet resnet18 vit]
"""

import os
import statistics
import sys
import time

import torch
from step import run_project
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from turns import arguments_of, measure, over

BATCH, CLASSES, WARM, STEPS, PROFILED = 128, 1000, 60, 200, 20  # --compile has made up its mind after 30 steps
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
WAYS = {"hand": [], "project": [], "project, --bad_steps ignore": ["--bad_steps", "ignore"]}


class Pictures(Dataset):
    """The same batch of noise (B, 3, 224, 224), in bytes and in pinned memory, again and again."""

    num_classes = CLASSES

    def __init__(self) -> None:
        self.images = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8).pin_memory()
        self.targets = (torch.arange(BATCH) % CLASSES).pin_memory()

    def __len__(self) -> int:
        return BATCH * (WARM + STEPS + PROFILED + 1)

    def __getitems__(self, indices):
        return self.images[: len(indices)], self.targets[: len(indices)]


class Scaled(nn.Module):
    """A network that is given bytes: the scaling is done on the GPU."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, 224, 224)."""
        return self.network((images.float() - 127) / 64)


def lenet(num_classes: int) -> nn.Module:
    """The project's LeNet."""
    from model.lenet import LeNet

    return Scaled(LeNet(3, num_classes, 224))


def resnet18(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18."""
    from torchvision.models import resnet18

    return Scaled(resnet18(num_classes=num_classes))


def vit(num_classes: int) -> nn.Module:
    """torchvision's ViT-B/16."""
    from torchvision.models import vit_b_16

    return Scaled(vit_b_16(num_classes=num_classes))


class Watch:
    """Times the steps, counts the waits of some more, says so, and leaves the process."""

    def batch(self, number: int) -> None:
        """A step of that number begins."""
        if number in (WARM, WARM + STEPS):
            torch.cuda.synchronize()
        if number == WARM:
            self.began = time.perf_counter()
        elif number == WARM + STEPS:
            self.seconds = time.perf_counter() - self.began
            self.profile = torch.profiler.profile()
            self.profile.start()
        elif number == WARM + STEPS + PROFILED:
            self.profile.stop()
            waits = sum(event.count for event in self.profile.key_averages() if event.key in WAITS)
            print("NUMBERS", self.seconds / STEPS * 1e3, waits / PROFILED, flush=True)
            os._exit(0)


def by_hand(network: nn.Module, watch: Watch) -> None:
    """The tuned loop."""
    torch.set_float32_matmul_precision("high")
    data, model = Pictures(), network.cuda().to(memory_format=torch.channels_last)
    model.compile()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    for number in range(len(data) // BATCH):
        watch.batch(number)
        images, targets = (part.cuda(non_blocking=True) for part in data.__getitems__(range(BATCH)))
        with torch.autocast("cuda", torch.bfloat16):
            loss = cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def with_project(name: str, watch: Watch, extra: list[str]) -> None:
    """The project."""
    from pytorch_lightning import Callback

    class Watching(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            watch.batch(batch_idx)

    argv = f"--model_name gpu.{name} --dataset gpu.Pictures --max_epochs 1 --val_fraction 0 --test_fraction 0 --lr 1e-5"
    argv += f" --devices 1 --batch_size {BATCH} --precision bf16-mixed --compile"
    run_project([*argv.split(), *extra], Watching(), where=("gpu",))


def main() -> None:
    """The command line."""
    arguments, _ = arguments_of(__doc__)
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py measures a GPU, and torch sees none here")
    if arguments.once:
        name, way, *extra = arguments.once
        if way == "hand":
            by_hand(globals()[name](CLASSES), Watch())
        with_project(name, Watch(), extra)
    print(f"{torch.cuda.get_device_name()}, {BATCH} images a step\n")
    print("| network | | ms a step | over the loop by hand, median | range | waits a step |\n" + "| --- " * 6 + "|")
    for name in arguments.only or ["lenet", "resnet18", "vit"]:
        found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds):
            for way, extra in WAYS.items():
                found[way].append(measure("gpu.py", arguments.project, name, way, *extra, number=2))
        hand = [ms for ms, _ in found["hand"]]
        for way, turns in found.items():
            steps, waits = zip(*turns, strict=True)
            print(
                f"| {name} | {way} | {statistics.median(steps):.2f} | {over(list(steps), hand)} "
                f"| {statistics.median(waits):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
