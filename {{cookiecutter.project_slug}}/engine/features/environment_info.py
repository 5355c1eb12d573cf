"""environment.json in the run folder: command, commit, versions, hardware and end, one entry per start of training.

No flag; without this file nothing is written.
"""

import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from engine.checkpointing.atomic_write import read_json, warn_if_unwritable, write_json
from engine.cli.credentials import hide_argv
from engine.cli.discovery import ROOT


def callbacks(run_dir: Path) -> list[Callback]:
    """No flags."""
    return [EnvironmentInfo(run_dir)]


class EnvironmentInfo(Callback):
    """Appends an entry when training starts or resumes, and how it ended, which `runs` shows."""

    def __init__(self, run_dir: Path) -> None:
        self.path, self.started = run_dir / "environment.json", False

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        entries = read_json(self.path, [])
        versions = {"python": platform.python_version()}
        for name in ("torch", "pytorch-lightning", "torchmetrics", "torchvision", "numpy"):
            with suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        entry = {
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": hide_argv(sys.argv),
            "commit": _commit(),
            "versions": versions,
            "hardware": _hardware(trainer),
        }
        self._write([*entries, entry])
        self.started = True

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:  # also where nothing was left to train
        self._end(trainer, "done")

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        code = exception.code if isinstance(exception, SystemExit) else 0
        if isinstance(code, int) and code > 128:
            self._end(trainer, f"stopped by {signal.Signals(code - 128).name}")
        else:
            self._end(trainer, f"failed: {type(exception).__name__}: {str(exception).partition(chr(10))[0]}")

    def _end(self, trainer: Trainer, state: str) -> None:
        """Writes into the latest entry how training ended; where a process is killed, nothing is."""
        if self.started and trainer.is_global_zero and (entries := read_json(self.path, [])):
            self._write([*entries[:-1], entries[-1] | {"ended": state}])

    def _write(self, entries: list[dict[str, Any]]) -> None:
        with warn_if_unwritable(self.path):
            write_json(self.path, entries)


def _commit() -> str | None:
    """The commit that is checked out, followed by -dirty if files differ; None without a repository or git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=5, check=True)
        return done.stdout.strip()
    return None


def _hardware(trainer: Trainer) -> dict[str, Any]:
    cpu = platform.processor()
    with suppress(OSError, StopIteration):  # Linux, where platform knows the architecture only
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    gpus = []
    if trainer.strategy.root_device.type == "cuda":  # a query would initialize CUDA on an unused GPU
        gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    counts = {"threads": torch.get_num_threads(), "processes": trainer.world_size}
    return {"system": platform.platform(), "cpu": cpu, "cpus": os.cpu_count(), "gpus": gpus} | counts
