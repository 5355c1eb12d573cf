"""`--histograms`: histograms of the weights in TensorBoard."""

from typing import Any

from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.loggers import TensorBoardLogger

from engine.errors import UsageError


def callbacks(*, histograms: bool = False) -> list[LambdaCallback]:
    """histograms: log the weights as TensorBoard histograms after each epoch."""

    def boards(trainer: Any) -> list[TensorBoardLogger]:
        return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]

    def check(trainer: Any, module: Any, stage: str) -> None:
        if stage == "fit" and not trainer.fast_dev_run and not boards(trainer):
            raise UsageError("--histograms needs TensorBoard, which is not in --logger")

    def log(trainer: Any, module: Any) -> None:
        for name, weight in module.named_parameters():
            full = weight.full_tensor() if hasattr(weight, "full_tensor") else weight  # gathers a DTensor on all ranks
            values = full.detach().float().cpu()
            if trainer.is_global_zero and values.numel() and values.isfinite().all():  # else there is no histogram
                for logger in boards(trainer):
                    logger.experiment.add_histogram(name, values, trainer.global_step)

    return [LambdaCallback(setup=check, on_train_epoch_end=log)] if histograms else []
