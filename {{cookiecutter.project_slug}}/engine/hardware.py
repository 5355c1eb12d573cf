"""The devices that `plan` counts with: how many, how much memory, and how fast one of those here is."""

import os
import re
import statistics
import time
from importlib import import_module
from typing import Any

import torch
from pytorch_lightning import Callback

from engine import machine
from engine.discovery import UsageError
from engine.settings import Settings

_UNITS = {"": 1e9, "MB": 1e6, "GB": 1e9, "TB": 1e12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def devices(given: Any) -> int:
    """How many devices of a machine --devices means."""
    found = max(torch.cuda.device_count(), 1)
    if isinstance(given, list | tuple):
        return len(given)
    if isinstance(given, int):
        return given if given > 0 else found
    return found if given in ("auto", "-1") else len(str(given).split(",")) if "," in str(given) else int(given)


def items(part: Any) -> int | None:
    """How many items a part has, None for a stream that does not say."""
    try:
        return len(part)
    except TypeError:
        return None


def stated(text: str) -> float:
    """Bytes that a text means.

    Raises:
        UsageError: it is no amount of memory.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.strip(), re.IGNORECASE)
    if not match or match[2].upper() not in _UNITS or not float(match[1]):
        raise UsageError(f"--device_memory {text}: write it as 80GB, 40GiB or 512MB")
    return float(match[1]) * _UNITS[match[2].upper()]


def memory(kind: str) -> float:
    """Bytes that the first GPU has, or this machine."""
    if kind == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure(settings: Settings, steps: int) -> float:
    """Seconds a batch takes, the median of some real ones on one device."""
    from data import DInterface
    from model import MInterface

    data = DInterface.of(settings)
    model = MInterface.of(settings, data)
    model.schedule |= {"lr_scheduler": "constant", "warmup_steps": 0, "warmup_epochs": 0.0}  # others ask for the end
    machine.prepare(model, data, **settings.arguments["machine"])
    clock = _Clock(steps)
    callbacks: list[Callback] = [clock]
    for name in ("freeze", "compile"):
        if name in settings.arguments:
            callbacks += import_module(f"engine.{name}").callbacks(None, model, data, **settings.arguments[name])
    keys = ("accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm", "benchmark", "deterministic")
    given = {key: value for key, value in settings.arguments["trainer"].items() if key in keys}
    silent: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = machine.trainer(
        model,
        **given | silent,
        devices=1,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=callbacks,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, data)
    return statistics.median(end - start for start, end in zip(clock.ends[1:], clock.ends[2:], strict=False))


class _Clock(Callback):
    """Times whole steps, loading included, and stops after `steps` and two to warm up."""

    def __init__(self, steps: int) -> None:
        self.steps, self.ends = steps, [0.0][:0]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        trainer.should_stop = len(self.ends) >= self.steps + 2
