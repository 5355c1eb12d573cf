"""The devices that `plan` counts with, and what many of them take, from what one does; goes with plan.py."""

import math
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback

from engine.cli import plugins
from engine.cli.settings import Settings
from engine.commands.plan.memory import DTYPES, Account
from engine.commands.plan.meta_network import constant
from engine.errors import UsageError
from engine.training import hardware

FREE = 0.1  # of the memory, left to the allocator, the kernels' workspaces and the driver
_UNITS = {"": 1e9, "MB": 1e6, "GB": 1e9, "TB": 1e12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def kind(accelerator: str) -> str:
    """The type of device that --accelerator takes here."""
    return "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def devices(given: Any, kind: str) -> int:
    """How many devices of a machine --devices means.

    Raises:
        UsageError: it is no number of them.
    """
    if isinstance(given, list | tuple):
        return len(given)
    if str(given) in ("auto", "-1"):
        return max(torch.cuda.device_count(), 1) if kind == "cuda" else 1
    parts = [part for part in str(given).split(",") if part.strip()]
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--devices {given}: should be a number of devices, their numbers, or auto")
    return len(parts) if "," in str(given) else int(given)


def strategy_of(given: str) -> str:
    """Which of ddp and fsdp it is.

    Raises:
        UsageError: it is another one.
    """
    if given == "auto" or given.startswith("ddp"):
        return "ddp"
    if given == "fsdp":
        return given
    raise UsageError(f"--strategy {given}: plan can account for ddp and fsdp")


def precision_of(given: str) -> str:
    """As Lightning names it: 32 is 32-true, bf16 is bf16-mixed.

    Raises:
        UsageError: it is another one.
    """
    bits, _, how = given.partition("-")
    name = f"{bits}-{how or ('mixed' if '16' in bits else 'true')}"
    if bits not in DTYPES:
        raise UsageError(
            f"--precision {given}: plan can account for 32-true, bf16-mixed, bf16-true, 16-mixed, 16-true, 64-true"
        )
    return name


def here(kind: str) -> float:
    """Bytes that the first GPU has, or this machine; infinite where the system does not say (Windows)."""
    if kind == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


def room(stated: str | None, kind: str) -> float:
    """Bytes that a text means, or else those that are here.

    Raises:
        UsageError: it is no amount of memory, or there is none to be read.
    """
    if stated is None:
        if (found := here(kind)) == math.inf:
            raise UsageError("this system does not say how much memory it has: --device_memory 16GB, say")
        return found
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", stated.strip(), re.IGNORECASE)
    if not match or match[2].upper() not in _UNITS or not float(match[1]):
        raise UsageError(f"--device_memory {stated}: write it as 80GB, 40GiB or 512MB")
    return float(match[1]) * _UNITS[match[2].upper()]


def memory(account: Account, precision: str, strategy: str, many: int, size: int) -> dict[str, float]:
    """Bytes that one of `many` devices holds in a step over `size` items when it holds most, by what they are for.

    "ddp" holds everything on each device, and on several its buckets hold the gradients once more (PyTorch's DDP
    without gradient_as_bucket_view). "fsdp" shares weights, gradients and the optimiser's state out, and gathers one
    layer at a time, the largest at the most: stage 3 of S. Rajbhandari et al., "ZeRO", 2020; Y. Zhao et al., "PyTorch
    FSDP", 2023. Mixed precision keeps weights, gradients and state in 32 bits; autograd keeps its casts.
    """
    share = many if strategy == "fsdp" else 1
    parts = {
        "weights": account.weights / share + account.buffers,
        "gradients": account.gradients / share,
        "optimizer_state": account.optimizer / share,
    }
    if strategy == "fsdp" and many > 1:
        parts["gathered_layer"] = gathered(account.largest, precision)
    elif many > 1:
        parts["buckets"] = account.gradients
    if account.activations:
        fixed, each = account.activations
        parts["activations"] = fixed + each * size
        parts["workspace"] = account.workspace * size
    return parts


def gathered(parameters: int, precision: str) -> float:
    """Bytes of weights as they are computed with."""
    return parameters * DTYPES[precision.partition("-")[0]].itemsize


def largest(account: Account, precision: str, strategy: str, many: int, room: float) -> int:
    """The largest batch that a device with `room` bytes holds, 0 where not even one item fits or it is not known."""
    if not account.activations or not (each := account.activations[1] + account.workspace) > 0:
        return 0
    rest = (1 - FREE) * room - sum(memory(account, precision, strategy, many, 0).values())
    return max(0, math.floor(rest / each))


def communication(account: Account, precision: str, strategy: str, many: int, batches: int = 1) -> float:
    """Bytes that each of N devices sends in an optimiser step of so many batches.

    ddp: 2 (N - 1) / N of the gradients, a ring all-reduce (P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce
    algorithms for clusters of workstations", 2009). fsdp: (N - 1) / N of the weights for the forward and again for
    the backward pass, and of the gradients that are reduced and scattered: 3 (N - 1) / N (ZeRO, section 7), in the
    precision computed with, as Lightning's FSDP sends them, and for each batch.
    """
    if strategy == "fsdp":
        return batches * gathered(2 * account.parameters + account.trainable, precision) * (many - 1) / many
    return 2 * account.gradients * (many - 1) / many


def step_seconds(
    batch_seconds: float, batches: int, sent: float, strategy: str, link_gbps: float
) -> tuple[float, float]:
    """Seconds of an optimiser step of so many batches, where communication overlaps as it may, and where not at all.

    It overlaps with the last backward pass in ddp (S. Li et al., "PyTorch Distributed", 2020), which is two thirds of
    a batch (twice the products of a forward pass), and with all passes in fsdp.
    """
    network = sent * 8 / (link_gbps * 1e9)
    hides = batch_seconds * (batches if strategy == "fsdp" else 2 / 3)
    return batches * batch_seconds + max(0.0, network - hides), batches * batch_seconds + network


def short(number: float | None) -> str:
    """1.23e9 as "1.23 GB"; "?" for None."""
    if number is None:
        return "?"
    power = 0
    while number >= 999.5 and power < 4:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def long(seconds: float) -> str:
    """90 as "1.5 min"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def items(part: Any) -> int | None:
    """How many items a part has, None for a stream that does not say."""
    try:
        return len(part)
    except TypeError:
        return None


def measure(settings: Settings, build_data: Callable[..., Any], build_model: Callable[..., Any], steps: int) -> float:
    """Seconds a batch takes, the median of some real ones on one device."""
    data = build_data(settings)
    model = build_model(settings, data)
    constant(model)
    hardware.configure(model, data, **settings.arguments["hardware"])
    clock = _Clock(steps)
    callbacks: list[Callback] = [clock]
    features = plugins.load_features(Path(), model, data, settings.arguments)
    callbacks += [one for one in features if getattr(one, "changes_step", False)]
    keys = ("accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm", "benchmark", "deterministic")
    given = {key: value for key, value in settings.arguments["trainer"].items() if key in keys}
    silent: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = hardware.make_trainer(
        model, data, Path(), **given | silent, devices=1, max_epochs=-1, callbacks=callbacks, plugins=[]
    )
    trainer.limit_val_batches = 0
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
