"""`--histograms`: how the weights are spread, in TensorBoard."""

from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from engine.errors import UsageError


def callbacks(folder: Any, model: Any, data: Any, *, histograms: bool = False) -> list[Callback]:
    """histograms: the weights as TensorBoard histograms after each epoch."""
    return [Histograms()] if histograms else []


class Histograms(Callback):
    """Raises: UsageError: TensorBoard, which draws them, is not among the loggers."""

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        if stage == "fit" and not trainer.fast_dev_run and not _boards(trainer):  # type: ignore[attr-defined]
            raise UsageError("--histograms are drawn by TensorBoard, which is not in --logger")

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        for name, weight in module.named_parameters():
            whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight  # of which each has a part
            values = whole.detach().float().cpu()
            if trainer.is_global_zero and values.numel() and values.isfinite().all():  # there is none of others
                for board in _boards(trainer):
                    board.experiment.add_histogram(name, values, trainer.global_step)


def _boards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
