"""What a run costs, beside what it learns: `--monitor_device`, `--throughput`."""

import importlib.util
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import DeviceStatsMonitor

from engine.errors import UsageError
from engine.launch.data_parallel import data_parallel_rank


def callbacks(
    folder: Any, model: Any, data: Any, *, monitor_device: bool = False, throughput: bool = False
) -> list[Callback]:
    """Flags.

    Args:
        monitor_device: log memory and load of the device whenever train_loss_step is logged.
        throughput: log how many items a second each epoch has learned from, validation aside.
    """
    return [*([DeviceStats()] if monitor_device else []), *([Throughput()] if throughput else [])]


class DeviceStats(DeviceStatsMonitor):
    """Lightning's. Raises: UsageError: there is no logger, or psutil, which measures a CPU, is not there."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not trainer.loggers:
            raise UsageError("--monitor_device has nowhere to log to: --logger csv, say")
        if trainer.strategy.root_device.type == "cpu" and importlib.util.find_spec("psutil") is None:
            raise UsageError('--monitor_device needs psutil on a CPU: pip install -e ".[monitor]"')
        super().setup(trainer, pl_module, stage)


class Throughput(Callback):
    """Logs `items_per_second`, over all processes; validations within the epoch do not count.

    A run that goes on within an epoch counts from there.
    """

    def __init__(self) -> None:
        self.items, self.seconds, self._began = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.items, self.seconds, self._began = 0, 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.items += len(module.unpack_batch(batch)[1]) * data_parallel_rank(trainer).size

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.seconds += time.perf_counter() - self._began

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        seconds = self.seconds + time.perf_counter() - self._began
        module.log_now({"items_per_second": self.items / seconds})
