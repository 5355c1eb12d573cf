"""The ranges of flags beyond their types, for those of the engine and the Trainer: checked before torch is imported."""

import re
from typing import Any

# least value -> the flags
_AT_LEAST = {
    -1: "max_epochs max_steps save_top_k num_sanity_val_steps",
    0: "num_workers seed lr weight_decay momentum warmup_steps patience val_fraction test_fraction every_n_minutes "
    "gradient_clip_val overfit_batches limit_train_batches limit_val_batches limit_test_batches val_check_interval "
    "measure_steps",
    0.001: "link_gbps device_tflops",
    0.01: "hang_minutes",
    1: "batch_size num_threads log_every_n_steps accumulate_grad_batches num_nodes every_n_train_steps "
    "check_val_every_n_epoch swa_epoch fold seed_index",
    2: "num_folds",
}
_LEAST = {name: least for least, names in _AT_LEAST.items() for name in names.split()}
_BELOW_ONE = ("val_fraction", "test_fraction", "ema_decay")
_CHOICES = {
    "accelerator": "auto cpu gpu cuda mps tpu",
    "profiler": "simple advanced pytorch xla",
    "gradient_clip_algorithm": "norm value",
    "precision": "64 64-true 32 32-true 16 16-true 16-mixed bf16 bf16-true bf16-mixed transformer-engine "
    "transformer-engine-float16",
}


def range_error(name: str, value: Any) -> str:
    """What is wrong with the value of a flag, or ""."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in _LEAST and number and not value >= _LEAST[name]:  # NaN is not either
        return f"should be at least {_LEAST[name]}"
    if name in _BELOW_ONE and number and not value < 1:
        return "should be less than 1"
    if name.startswith("limit_") and isinstance(value, float) and value > 1:
        return "should be a share up to 1.0, or a whole number of batches"
    if name in _CHOICES and value is not None and str(value) not in _CHOICES[name].split():
        return f"is not one of {', '.join(_CHOICES[name].split())}"
    if name == "max_time" and isinstance(value, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value):
        return "should be DD:HH:MM:SS, such as 00:12:00:00"
    if name == "devices" and value in (0, [], "0"):
        return "should be a number of devices, their numbers, or auto"
    if name == "strategy" and re.search("spawn|fork|notebook", str(value)):  # Lightning's ways to run in a notebook
        return "would lose what its processes measure; ddp starts processes too, and keeps it"
    return ""
