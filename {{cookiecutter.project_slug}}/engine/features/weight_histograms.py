"""`--histograms`: histograms of the weights in TensorBoard."""

from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from engine.errors import UsageError


def callbacks(*, histograms: bool = False) -> list[Callback]:
    """histograms: log the weights as TensorBoard histograms after each epoch."""
    return [WeightHistograms()] if histograms else []


class WeightHistograms(Callback):
    """Logs a histogram of each parameter. Raises: UsageError: TensorBoard is not among the loggers."""

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if stage == "fit" and not trainer.fast_dev_run and not boards:  # type: ignore[attr-defined]
            raise UsageError("--histograms needs TensorBoard, which is not in --logger")

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        for name, weight in module.named_parameters():
            full = weight.full_tensor() if hasattr(weight, "full_tensor") else weight  # gathers a DTensor on all ranks
            values = full.detach().float().cpu()
            if trainer.is_global_zero and values.numel() and values.isfinite().all():  # else there is no histogram
                for logger in trainer.loggers:
                    if isinstance(logger, TensorBoardLogger):
                        logger.experiment.add_histogram(name, values, trainer.global_step)
