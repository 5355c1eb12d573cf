"""Items a second of two processes over twice those of one, on the CPU, with one thread each: 1 is perfect.

python benchmarks/ddp.py PROJECT [ROUNDS] [FLAGS OF MAIN.PY]
"""

import os
import statistics
from functools import partial
from pathlib import Path

import torch
from step import run_project, timer
from torch import nn
from torch.utils.data import Dataset
from turns import arguments_of, in_turn, measure, over

BATCH, WARM, STEPS = 64, 20, 100
DEVICES = {"one": ["--devices", "1"], "two": ["--devices", "2", "--strategy", "ddp"]}


class Pictures(Dataset):
    """Noise: as many images (3, 32, 32) as both processes want, of which a thousand are in memory."""

    num_classes = 10

    def __init__(self) -> None:
        self.images = torch.rand(1000, 3, 32, 32)

    def __len__(self) -> int:
        return 2 * BATCH * (WARM + STEPS + 1)

    def __getitems__(self, indices):
        where = torch.as_tensor(indices)
        return self.images.index_select(0, where % 1000), where % 10


class Net(nn.Sequential):
    """Much to compute and little to pass round: 57,000 parameters."""

    def __init__(self, num_classes: int) -> None:
        first = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()]
        second = [nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*first, *second, nn.Linear(64, num_classes))


def once(devices: str, extra: list[str]) -> float:
    """Items a second of all processes together."""
    clock = timer(WARM)
    argv = "--model_name ddp.Net --dataset ddp.Pictures --max_epochs 1 --val_fraction 0 --test_fraction 0"
    argv += f" --batch_size {BATCH} --limit_train_batches {WARM + STEPS + 1}"
    run_project([*argv.split(), *DEVICES[devices], *extra], clock)
    return BATCH * int(DEVICES[devices][1]) * STEPS / (clock.ended - clock.began)


def items_a_second(project: Path, devices: str, extra: list[str]) -> float:
    """The same, in processes of its own."""
    return measure("ddp.py", project, devices, *extra)[0]


def main() -> None:
    """The command line."""
    arguments, extra = arguments_of(__doc__)
    if arguments.once:
        devices, *extra = arguments.once
        items = once(devices, extra)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("NUMBERS", items)
        return
    ways = {devices: partial(items_a_second, arguments.project, devices, extra) for devices in DEVICES}
    found = in_turn(arguments.rounds, ways)
    one = statistics.median(found["one"])
    print(f"| two processes over twice one ({one:.0f} items a second) | median | range |\n| --- | --- | --- |")
    print(f"| {BATCH} items a process and step | {over(found['two'], [2 * value for value in found['one']])} |")


if __name__ == "__main__":
    main()
