"""Items a second, on the wall and by CPU time, of `predict` and of an exported network over a bare inference loop.

python benchmarks/predict.py PROJECT [ROUNDS]
"""

import os
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import TensorDataset
from turns import arguments_of, in_turn, measure, over

ITEMS, BATCH = 20_032, 64
WAYS = {
    "csv": "predict, written to predictions.csv",
    "npy": "predict --format npy",
    "pt2": "network.pt2 of export, loaded by torch.export.load",
}


class Images(TensorDataset):
    """Noise in the size of MNIST, in memory: few items to train on, many to predict."""

    num_classes, in_channels, img_size = 10, 1, 28

    def __init__(self, train: bool) -> None:
        source, number = torch.Generator().manual_seed(0), 2 * BATCH if train else ITEMS
        images = torch.randn(number, 1, 28, 28, generator=source)
        super().__init__(images, torch.randint(0, 10, (number,), generator=source))


def clocks() -> tuple[float, float]:
    """Seconds on the wall, and of CPU."""
    return time.perf_counter(), time.process_time()


def speeds(began: tuple[float, float]) -> list[float]:
    """Items a second of each clock since it began."""
    return [ITEMS / (now - then) for now, then in zip(clocks(), began, strict=True)]


def bare(network, inputs) -> list[float]:
    """The speeds of a loop, after a few batches that warm up."""
    with torch.inference_mode():
        for batch in (*inputs[: 5 * BATCH].split(BATCH), None, *inputs.split(BATCH)):
            if batch is None:
                began = clocks()
            else:
                network(batch)
    return speeds(began)


def with_project(format: str, names: list[str]) -> list[float]:
    """The speeds from the first batch to the end of the command, its file written."""
    from pytorch_lightning import Callback
    from step import run_project

    class Clock(Callback):
        began = 0.0, 0.0

        def on_predict_start(self, trainer, module) -> None:
            Clock.began = clocks()

    run_project(["predict", "--ckpt_path", "last", "--format", format, *names], Clock())
    return speeds(Clock.began)


def once(way: str) -> list[float]:
    """The speeds of one way."""
    from step import keep_memory, run_project

    names = ["--model_name", "lenet", "--dataset", "predict.Images"]
    torch.set_num_threads(1)
    if way == "bare":
        from model.lenet import LeNet

        keep_memory()
        return bare(LeNet(1, 10, 28).eval(), Images(False).tensors[0])
    run_project([*names, "--max_steps", "1", "--no-pictures", "--logger", "[]", "--limit_test_batches", "1"])
    if way != "pt2":
        return with_project(way, names)
    run_project(["export", "--ckpt_path", "last", *names])
    program = torch.export.load(next(Path("lightning_logs").rglob("network.pt2")))
    return bare(program.module(), Images(False).tensors[0])


def main() -> None:
    """The command line."""
    arguments, _ = arguments_of(__doc__)
    if arguments.once:
        standard_output = os.dup(1)
        os.dup2(2, 1)  # the project's own lines
        both = once(arguments.once[0])
        os.dup2(standard_output, 1)
        print("NUMBERS", *both, flush=True)
        return
    ways = {way: partial(measure, "predict.py", arguments.project, way, number=2) for way in ("bare", *WAYS)}
    found = in_turn(arguments.rounds, ways)
    walls, cpus = ({way: [one[clock] for one in several] for way, several in found.items()} for clock in (0, 1))
    head = f"items a second over a bare loop ({sorted(cpus['bare'])[arguments.rounds // 2]:.0f} a second of CPU)"
    print(f"| {head} | median | range | by CPU time | range |\n| --- | --- | --- | --- | --- |")
    for way, words in WAYS.items():
        print(f"| {words} | {over(walls[way], walls['bare'])} | {over(cpus[way], cpus['bare'])} |", flush=True)


if __name__ == "__main__":
    main()
