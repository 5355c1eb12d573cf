"""`--throughput`: logs the training items per second of each epoch."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from engine.launch.data_parallel_rank import data_parallel_rank


def callbacks(run_dir: Any, model: Any, data: Any, *, throughput: bool = False) -> list[Callback]:
    """throughput: log the training items per second of each epoch, without the time of validation."""
    return [Throughput()] if throughput else []


class Throughput(Callback):
    """Logs `items_per_second` at the end of each epoch: items of all processes over seconds of training.

    After a resume within an epoch, only the rest of that epoch is measured.
    """

    def __init__(self) -> None:
        self.items, self.seconds, self._start = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.items, self.seconds, self._start = 0, 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.items += module.num_items(batch) * data_parallel_rank(trainer).size

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.seconds += time.perf_counter() - self._start

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        seconds = self.seconds + time.perf_counter() - self._start
        module.log_now({"items_per_second": self.items / seconds})
