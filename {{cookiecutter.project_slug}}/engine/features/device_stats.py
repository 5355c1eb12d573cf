"""`--monitor_device`: logs memory and load of the GPU or CPU (Lightning's DeviceStatsMonitor)."""

import importlib.util

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import DeviceStatsMonitor

from engine.errors import UsageError


def callbacks(*, monitor_device: bool = False) -> list[Callback]:
    """monitor_device: log memory and utilisation of the device whenever train_loss_step is logged."""
    return [DeviceStats()] if monitor_device else []


class DeviceStats(DeviceStatsMonitor):
    """Lightning's, during training only. Raises: UsageError: there is no logger, or no psutil, which a CPU needs."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not trainer.loggers:
            raise UsageError("--monitor_device needs a logger, such as --logger csv")
        if trainer.strategy.root_device.type == "cpu" and importlib.util.find_spec("psutil") is None:
            raise UsageError('--monitor_device needs psutil on a CPU: pip install -e ".[monitor]"')
        super().setup(trainer, pl_module, stage)
