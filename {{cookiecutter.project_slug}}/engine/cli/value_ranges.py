"""Ranges that no annotation says: of flags of the Trainer, of torch's losses and optimisers, and of dropout."""

import re
from typing import Any

from engine.cli.type_conversion import OutOfRange, check_range

_RANGES: dict[str, dict[tuple[str, ...], str]] = {
    "trainer": {
        (">= -1",): "num_sanity_val_steps",
        (">= -1", "!= 0"): "max_steps",
        ("> 0",): "limit_train_batches limit_predict_batches val_check_interval",
        (">= 0",): "gradient_clip_val overfit_batches limit_val_batches limit_test_batches fast_dev_run "
        "min_epochs min_steps reload_dataloaders_every_n_epochs",
        (">= 1", "<= 1000000000"): "log_every_n_steps accumulate_grad_batches num_nodes check_val_every_n_epoch",
    },
    "optimizer": {
        (">= 0",): "momentum eps lr_decay initial_accumulator_value dampening",
        (">= 0", "< 1"): "betas",
        (">= 0", "<= 1"): "rho alpha",
    },
    "loss": {(">= 0", "<= 1"): "label_smoothing", ("> 0",): "delta eps", (">= 0",): "beta"},
    "network": {(">= 0", "<= 1"): "dropout"},
}
_CHOICES = {
    "accelerator": "auto cpu gpu cuda mps tpu",
    "deterministic": "true false warn none",
    "profiler": "simple advanced pytorch xla none",
    "gradient_clip_algorithm": "norm value none",
    "precision": "64 64-true 32 32-true 16 16-true 16-mixed bf16 bf16-true bf16-mixed transformer-engine "
    "transformer-engine-float16 none",
}


def range_error(name: str, value: Any, groups: list[str], default: Any = None) -> str:
    """What is wrong with the value of a flag, or "". groups: those that it is an argument of."""
    if not isinstance(default, float) or not 0 <= default <= 1:  # a network may count its dropout in per cent
        groups = [one for one in groups if one != "network"]
    for group in _RANGES.keys() & {*groups}:
        ranges = [limits for limits, names in _RANGES[group].items() if name in names.split()]
        try:
            for limits in ranges:
                for number in value if isinstance(value, (list, tuple)) else [value]:
                    check_range(number, limits)
        except OutOfRange as error:
            return str(error)
    return _trainer_error(name, value) if "trainer" in groups else ""


def choices(name: str) -> str:
    """What a flag of the Trainer takes, for help, "" where there is no list."""
    return f"one of {', '.join(_CHOICES[name].split())}" if name in _CHOICES else ""


def _trainer_error(name: str, value: Any) -> str:
    if name.startswith("limit_") and isinstance(value, float) and value > 1:
        return "should be a share up to 1.0, or a whole number of batches"
    if name in _CHOICES and str(value).lower() not in _CHOICES[name].split():
        return f"is not {choices(name)}"
    if name == "max_time" and isinstance(value, str) and not re.fullmatch(r"(?=.*[1-9])\d+:\d\d:\d\d:\d\d", value):
        return "should be DD:HH:MM:SS and more than 0, such as 00:12:00:00"
    numbers = value if isinstance(value, list) else [value]
    if name == "devices" and value not in ("auto", -1) and (
        value in (0, []) or any(type(one) is not int or not 0 <= one < 1e6 for one in numbers)):  # fmt: skip
        return "should be a number of devices, their numbers, or auto"
    if name == "strategy" and re.search("spawn|fork|notebook", str(value)):  # Lightning's ways to run in a notebook
        return "would lose what its processes measure; ddp starts processes too, and keeps it"
    return ""
