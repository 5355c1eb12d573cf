"""StepTimer: times training steps."""

import time
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from engine.datamodule.item_fields import num_items


class StepTimer(Callback):
    """Times training steps; the first two warm up and do not count.

    starts, ends: seconds of `time.perf_counter` when a step has its batch, and when it is done. num_items: items of
    each step; the last batch of an epoch has fewer.
    """

    def __init__(self) -> None:
        self.starts, self.ends = list[float](), list[float]()
        self.num_items: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.starts[len(self.ends) :] = [_now()]  # a step that on_train_batch_start of the module skipped has no end

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ends.append(_now())
        self.num_items.append(num_items(module, batch))

    def step_seconds(self) -> list[float]:
        """Seconds of each whole step that counts, the loading of its batch included."""
        return [end - start for start, end in zip(self.ends[1:], self.ends[2:], strict=False)]

    def seconds_without_loading(self) -> list[float]:
        """Seconds of each step that counts, from when it has its batch."""
        return [end - start for start, end in zip(self.starts, self.ends, strict=False)][2:]


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
