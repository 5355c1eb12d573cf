"""`--throughput`: logs the training items per second of each epoch."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from engine.datamodule.item_fields import num_items
from engine.launch.data_parallel_rank import data_parallel_rank
from engine.logging import loggers


def callbacks(*, throughput: bool = False) -> list[Callback]:
    """throughput: log the training items per second of each epoch, without the time of validation."""
    return [Throughput()] if throughput else []


class Throughput(Callback):
    """Logs `items_per_second` at the end of each epoch: items of all processes over seconds of training."""

    def __init__(self) -> None:
        self.items, self.seconds, self._start = 0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.items, self.seconds, self._start = 0, 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.items += num_items(module, batch) * data_parallel_rank(trainer).size

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._pause()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._pause()
        loggers.log_now(trainer, {"items_per_second": self.items / self.seconds})

    def _pause(self) -> None:
        """Adds the seconds since the start."""
        now = time.perf_counter()
        self.seconds, self._start = self.seconds + now - self._start, now

    def state_dict(self) -> dict[str, float]:
        """Items and seconds of the epoch so far."""
        self._pause()
        return {"items": self.items, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.items, self.seconds = int(state_dict["items"]), state_dict["seconds"]
