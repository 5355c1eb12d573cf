"""environment.json in the run folder: with what, on what and from which commit a run was trained; a list, one a start.

It brings no flag; delete this file and nothing is noted.
"""

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from engine.cli.discovery import ROOT

_PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "torchvision", "numpy")


def callbacks(folder: Path, model: Any, data: Any) -> list[Callback]:
    """It asks for nothing."""
    return [Environment(folder, data)]


class Environment(Callback):
    """Adds an entry when training starts, or goes on."""

    def __init__(self, folder: Path, data: Any) -> None:
        self.path, self.data = folder / "environment.json", data

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        before = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []
        entry = {
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": sys.argv,
            "commit": _commit(),
            "versions": {"python": platform.python_version(), **_versions()},
            "hardware": _hardware(trainer),
            "data": _shapes(self.data),
        }
        part = self.path.with_suffix(".json.part")
        text = json.dumps([*before, entry], indent=2, ensure_ascii=False, default=str)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, self.path)


def _commit() -> str | None:
    """The commit that is checked out, with -dirty behind it where files differ; None without a repository or git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware(trainer: Trainer) -> dict[str, Any]:
    cpu = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    gpus = []
    if trainer.strategy.root_device.type == "cuda":  # to ask a GPU that is not used would take it
        gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    here = {"system": platform.platform(), "cpu": cpu, "cpus": os.cpu_count(), "gpus": gpus}
    return {**here, "threads": torch.get_num_threads(), "processes": trainer.world_size}


def _shapes(data: Any) -> dict[str, Any]:
    """What the data knows of itself, its length, and the shape of an item, by place or name."""
    known = {name: data.attribute(name) for name in ("classes", "num_classes")}
    with suppress(TypeError):  # a stream need not know its length
        known["training_items"] = len(data.split("train"))
    batch = data.sample()
    if isinstance(batch, (dict, list, tuple)):
        items = batch.items() if isinstance(batch, dict) else enumerate(batch)
        known["item"] = {str(name): _shape(one) for name, one in items}
    return {name: value for name, value in known.items() if value is not None}


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {'x'.join(map(str, value.shape[1:])) or 'scalar'}"
