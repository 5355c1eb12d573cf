"""StepTimer: times training steps."""

import time
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from engine.datamodule.item_fields import num_items


class StepTimer(Callback):
    """Times whole training steps, loading included; the first two warm up and do not count.

    ends: seconds of `time.perf_counter` at the end of each step. num_items: items of each step; the last batch of an
    epoch has fewer.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.num_items: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.num_items.append(num_items(module, batch))

    def step_seconds(self) -> list[float]:
        """Seconds of each step that counts."""
        return [end - start for start, end in zip(self.ends[1:], self.ends[2:], strict=False)]
