"""A whole job: from the start of the process to the test result, its peak memory, and what comes before the first step.

python benchmarks/job.py PROJECT [ROUNDS] [--only job first memory flat bake runs]
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from step import run_project, with_lightning, write_mnist
from turns import arguments_of, in_turn, measure, peak_memory, table

HERE, LIBRARIES = Path(__file__).resolve().parent, ["-c", "import torch, pytorch_lightning, torchvision"]
MNIST = ["--dataset", "mnist", "--max_epochs", "1", "--num_threads", "1"]
DIGITS = ["--model_name", "lenet", "--dataset", "digits", "--accelerator", "cpu", "--num_threads", "1"]


def first(in_channels: int, num_classes: int, img_size: int):
    """LeNet that leaves the process as the second training step begins."""
    from model.lenet import LeNet

    class First(LeNet):
        steps = 0

        def forward(self, images):
            self.steps += self.training
            return super().forward(images) if self.steps < 2 else os._exit(0)

    return First(in_channels, num_classes, img_size)


def seconds(project: Path, *command: object, folder: Path | None = None) -> float:
    """Seconds of Python's command from its start to its end, in an empty folder."""
    environment = os.environ | {"PYTHONPATH": f"{project}{os.pathsep}{HERE}"}
    with tempfile.TemporaryDirectory() as empty:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=folder or empty, env=environment, capture_output=True, check=False
        )
        took = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr.decode())
    return took


def once(what: str, scratch: Path) -> list[float]:
    """What has to be measured from within: peak memory in MiB, or the seconds that baking takes."""
    if what == "bake":
        from cookiecutter.main import cookiecutter

        os.environ["HOME"] = os.getcwd()  # cookiecutter keeps the answers there
        began = time.perf_counter()
        cookiecutter(str(HERE.parent), no_input=True, output_dir=".")
        return [time.perf_counter() - began]
    if what == "lightning":
        with_lightning("lenet", scratch)
    elif what == "project":
        mnist = ["--model_name", "lenet", "--dataset", "mnist", "--data_dir", str(scratch), "--max_epochs", "1"]
        run_project([*mnist, "--limit_train_batches", "501"])
    elif what == "flat":
        return flat()
    return [peak_memory()]


def flat() -> list[float]:
    """Peak memory after 5 epochs and after 50."""
    from pytorch_lightning import Callback

    class Peaks(Callback):
        def __init__(self) -> None:
            self.after: dict[int, float] = {}

        def on_train_epoch_end(self, trainer, module) -> None:
            self.after[trainer.current_epoch + 1] = peak_memory()

    peaks = Peaks()
    run_project([*DIGITS[:4], "--max_epochs", "50"], peaks)
    return [peaks.after[5], peaks.after[50]]


def job(project: Path, rounds: int, scratch: Path) -> None:
    """An epoch of MNIST, from the process's start to the test result, over the plain script."""
    argv = ["--model_name", "lenet", *MNIST, "--data_dir", scratch]
    ways = {
        "plain": lambda: seconds(project, HERE / "plain.py", project, scratch, 1),
        "project": lambda: seconds(project, project / "main.py", *argv),
    }
    found, names = in_turn(rounds, ways), {"project": "this project, all of its defaults"}
    table(
        f"an epoch of MNIST and its test, over a plain script ({statistics.median(found['plain']):.1f} s)",
        found,
        names,
        "plain",
    )


def start(project: Path, rounds: int, scratch: Path) -> None:
    """The first training step over the imports."""
    argv = ["--model_name", "job.first", *MNIST, "--data_dir", scratch]
    ways = {
        "imports": lambda: seconds(project, *LIBRARIES),
        "project": lambda: seconds(project, project / "main.py", *argv),
    }
    found, names = in_turn(rounds, ways), {"project": "process start to the end of the first training step"}
    table(
        f"over importing torch, pytorch_lightning and torchvision ({statistics.median(found['imports']):.1f} s)",
        found,
        names,
        "imports",
    )


def memory(project: Path, rounds: int, scratch: Path) -> None:
    """Peak memory of 500 steps of LeNet."""
    ways = {name: lambda name=name: measure("job.py", project, name, scratch)[0] for name in ("lightning", "project")}
    found, names = in_turn(rounds, ways), {"project": "this project, all of its defaults"}
    table(
        f"peak memory over Lightning's defaults ({statistics.median(found['lightning']):.0f} MiB)",
        found,
        names,
        "lightning",
    )


def growth(project: Path, rounds: int, scratch: Path) -> None:
    """Whether memory grows with the epochs."""
    grown = []
    for _ in range(rounds):
        after_5, after_50 = measure("job.py", project, "flat", scratch, number=2)
        grown.append(after_50 - after_5)
    print(
        f"\nPeak memory grows by {statistics.median(grown):.1f} MiB (up to {max(grown):.1f}) from epoch 5 to epoch 50."
    )


def bake(project: Path, rounds: int, scratch: Path) -> None:
    """How long baking takes; the first one fills the caches."""
    took = [measure("job.py", project, "bake", scratch)[0] for _ in range(rounds + 1)][1:]
    middle = statistics.median(took)
    print(f"\nBaking takes under a second: {'yes' if max(took) < 1 else 'no'} (median {middle:.2f} s).")


def runs(project: Path, rounds: int, scratch: Path) -> None:
    """Whether a run starts slower among many others, and finds the last of them slower."""
    folders = {str(number): scratch / str(number) for number in (1, 1000)}
    argv = [project / "main.py", *DIGITS, "--max_steps", 1]
    for number, folder in folders.items():
        folder.mkdir()
        seconds(project, *argv, folder=folder)
        for copy in range(1, int(number)):
            shutil.copytree(folder / "lightning_logs" / "version_0", folder / "lightning_logs" / f"version_{copy}")
    last = [project / "main.py", "--ckpt_path", "last", "--max_steps", 2]
    for words, command in {"a run of one step": argv, "taking up the last run": last}.items():
        ways = {
            name: lambda command=command, folder=folder: seconds(project, *command, folder=folder)
            for name, folder in folders.items()
        }
        found = in_turn(rounds, ways)
        table(f"1,000 earlier runs over one ({statistics.median(found['1']):.1f} s)", found, {"1000": words}, "1")


PARTS: dict[str, Callable[[Path, int, Path], None]] = {
    "job": job,
    "first": start,
    "memory": memory,
    "flat": growth,
    "bake": bake,
    "runs": runs,
}


def main() -> None:
    """The command line."""
    arguments, _ = arguments_of(__doc__)
    project, rounds = arguments.project.resolve(), arguments.rounds
    if arguments.once:
        print("NUMBERS", *once(arguments.once[0], Path(arguments.once[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write_mnist(scratch)
        for name in arguments.only or PARTS:
            PARTS[name](project, rounds, scratch)


if __name__ == "__main__":
    main()
