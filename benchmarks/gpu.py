"""A step on a GPU in bfloat16, compiled, over a loop tuned by hand, and how often a step waits for the GPU.

python benchmarks/gpu.py PROJECT [ROUNDS] [--only lenet resnet18 vit small_vgg]
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

CLASSES, WARM, STEPS, PROFILED = 1000, 60, 120, 20  # what torch.compile and CUDA graphs do at first is over after 60
SIZES = {"lenet": (128, 224), "resnet18": (128, 224), "vit": (128, 224), "small_vgg": (1024, 32)}  # images, their side
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
WAYS = {
    "hand": ["hand", "default"],
    "project": ["project", "default"],
    "project, --deterministic true": ["project", "default", "--deterministic", "true"],
    "hand, CUDA graphs": ["hand", "reduce-overhead"],
    "project, --compile_mode reduce-overhead": ["project", "reduce-overhead"],
}
SMALL = ("lenet", "small_vgg")  # whose kernels are short, so that CUDA graphs may help


class Pictures(Dataset):
    """The same batch of noise (B, 3, S, S), in bytes and in pinned memory, again and again."""

    num_classes = CLASSES

    def __init__(self, number: int, side: int) -> None:
        self.number = number
        self.images = torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8).pin_memory()
        self.labels = (torch.arange(number) % CLASSES).pin_memory()

    def __len__(self) -> int:
        return self.number * (WARM + STEPS + PROFILED + 1)

    def __getitem__(self, index: int):
        return self.images[index % self.number], self.labels[index % self.number]

    def __getitems__(self, indices):
        return self.images[: len(indices)], self.labels[: len(indices)]


class Scaled(nn.Module):
    """A network that is given bytes: the scaling is done on the GPU."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, S, S)."""
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


def small_vgg(num_classes: int) -> nn.Module:
    """Of the shape of airbench94 (K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 2), nn.GELU()]
    for before, after in ((24, 64), (64, 256), (256, 256)):
        layers += [nn.Conv2d(before, after, 3, padding="same", bias=False), nn.MaxPool2d(2)]
        layers += [nn.BatchNorm2d(after), nn.GELU(), nn.Conv2d(after, after, 3, padding="same", bias=False)]
        layers += [nn.BatchNorm2d(after), nn.GELU()]
    return Scaled(nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(256, num_classes, bias=False)))


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


def by_hand(name: str, watch: Watch, mode: str) -> None:
    """The tuned loop."""
    torch.set_float32_matmul_precision("high")
    data, model = Pictures(*SIZES[name]), globals()[name](CLASSES).cuda().to(memory_format=torch.channels_last)
    model.compile(mode=mode)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    for number in range(len(data) // data.number):
        watch.batch(number)
        images, targets = (part.cuda(non_blocking=True) for part in data.__getitems__(range(data.number)))
        with torch.autocast("cuda", torch.bfloat16):
            loss = cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def with_project(name: str, watch: Watch, mode: str, extra: list[str]) -> None:
    """The project."""
    from pytorch_lightning import Callback

    class Watching(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            watch.batch(batch_idx)

    number, side = SIZES[name]
    argv = f"--model_name gpu.{name} --dataset gpu.Pictures --max_epochs 1 --val_fraction 0 --test_fraction 0 --lr 1e-5"
    argv += f" --number {number} --side {side} --batch_size {number} --devices 1 --precision bf16-mixed"
    run_project([*argv.split(), "--compile", "--compile_mode", mode, *extra], Watching(), where=("gpu",))


def main() -> None:
    """The command line."""
    arguments, _ = arguments_of(__doc__)
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py measures a GPU, and torch sees none here")
    if arguments.once:
        name, way, mode, *extra = arguments.once
        if way == "hand":
            by_hand(name, Watch(), mode)
        with_project(name, Watch(), mode, extra)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| network | | ms a step | over the loop by hand, median | range | waits a step |\n" + "| --- " * 6 + "|")
    for name in arguments.only or SIZES:
        ways = {way: words for way, words in WAYS.items() if name in SMALL or "reduce-overhead" not in words}
        found: dict[str, list[list[float]]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, words in ways.items():
                found[way].append(measure("gpu.py", arguments.project, name, *words, number=2))
        for way, turns in found.items():
            steps, waits = zip(*turns, strict=True)
            hand = [ms for ms, _ in found["hand, CUDA graphs" if "reduce-overhead" in ways[way] else "hand"]]
            print(
                f"| {name} | {way} | {statistics.median(steps):.2f} | {over(list(steps), hand)} "
                f"| {statistics.median(waits):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
