"""What grows with the number of items, classes and parameters: the project beside a tuned loop written by hand.

python benchmarks/scale.py PROJECT [ROUNDS] [--long] [--only items classes parameters]
"""

import os
import statistics
import time

import torch
from step import keep_memory, run_project
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from turns import arguments_of, measure, peak_memory

ITEMS, CLASSES, HIDDEN = 100_000, 10, 128
SIZES = {
    "items": [10, 1_000, 100_000, 1_000_000],
    "classes": [1, 10, 100, 1_000, 10_000],
    "parameters": [10_000, 100_000, 1_000_000, 10_000_000],
}
LONG = {"items": [10_000_000], "classes": [], "parameters": [100_000_000]}


class Points(Dataset):
    """Noise with eight features, in memory."""

    def __init__(self, num_items: int, num_classes: int) -> None:
        self.num_classes = num_classes
        self.points = torch.rand(num_items, 8)
        self.targets = torch.arange(num_items) % num_classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices):
        where = torch.as_tensor(indices)
        return self.points[where], self.targets[where]


class Net(nn.Sequential):
    """Two hidden layers: hidden_dim ** 2 parameters and some."""

    def __init__(self, num_classes: int, hidden_dim: int) -> None:
        layers = [nn.Linear(8, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden_dim, num_classes))


class Watch:
    """Notes how long an epoch takes to begin, and each step; says so after enough of them, and leaves the process."""

    def __init__(self, steps: int) -> None:
        self.steps, self.gaps, self.begins, self.last = steps, list[float](), list[float](), 0.0

    def epoch(self) -> None:
        """An epoch begins."""
        self.last = time.perf_counter()

    def batch(self, number: int) -> None:
        """The batch of that number is there."""
        now = time.perf_counter()
        (self.gaps if number else self.begins).append(now - self.last)
        self.last = now
        if len(self.gaps) == self.steps:
            step, begin = statistics.median(self.gaps[self.steps // 4 :]), min(self.begins)
            print("NUMBERS", step * 1e3, begin * 1e3, peak_memory(), flush=True)
            os._exit(0)


def by_hand(watch: Watch, items: int, classes: int, hidden: int, batch: int) -> None:
    """The tuned loop."""
    keep_memory()
    data, model = Points(items, classes), Net(classes, hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    while True:
        watch.epoch()
        order = torch.randperm(items)
        for number, start in enumerate(range(0, items, batch)):
            part = order[start : start + batch]
            points, targets = data.points[part], data.targets[part]
            watch.batch(number)
            optimizer.zero_grad()
            cross_entropy(model(points), targets).backward()
            optimizer.step()


def with_project(watch: Watch, items: int, classes: int, hidden: int, batch: int) -> None:
    """The project, all of its defaults."""
    from pytorch_lightning import Callback

    class Watching(Callback):
        def on_train_epoch_start(self, trainer, module) -> None:
            watch.epoch()

        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            watch.batch(batch_idx)

    argv = f"--model_name scale.Net --dataset scale.Points --num_items {items} --num_classes {classes} --lr 1e-5"
    argv += f" --hidden_dim {hidden} --batch_size {batch} --val_fraction 0 --test_fraction 0 --max_epochs -1"
    run_project([*argv.split(), "--lr_scheduler", "constant"], Watching())


def main() -> None:
    """The command line."""
    arguments, _ = arguments_of(__doc__)
    if arguments.once:
        way, *numbers = arguments.once
        items, classes, hidden = map(int, numbers)
        torch.set_num_threads(1)
        watch = Watch(200 if hidden <= 1_000 else 50 if hidden <= 4_000 else 12)
        (with_project if way == "project" else by_hand)(watch, items, classes, hidden, min(64, items // 2))
    for what in arguments.only or SIZES:
        print(
            f"\n| {what} | step by hand, ms | project over it (range) | epoch begins, ms: by hand, project "
            "| peak memory, MiB: by hand, project |\n| --- | --- | --- | --- | --- |"
        )
        for size in SIZES[what] + (LONG[what] if arguments.long else []):
            sizes = {"items": ITEMS, "classes": CLASSES, "parameters": HIDDEN**2} | {what: size}
            numbers = sizes["items"], sizes["classes"], round(sizes["parameters"] ** 0.5)
            turns = [
                [measure("scale.py", arguments.project, way, *numbers, number=3) for way in ("hand", "project")]
                for _ in range(arguments.rounds)
            ]
            ratios = [project[0] / hand[0] for hand, project in turns]
            ms, begins, peaks = (
                [statistics.median(turn[way][key] for turn in turns) for way in (0, 1)] for key in range(3)
            )
            print(
                f"| {size:,} | {ms[0]:.2f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
                f"| {begins[0]:.0f}, {begins[1]:.0f} | {peaks[0]:.0f}, {peaks[1]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
