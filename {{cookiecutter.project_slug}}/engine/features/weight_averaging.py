"""`--ema_decay` and `--swa_epoch`: an average of the weights is validated, kept and tested in their place."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging

from engine.errors import UsageError
from engine.lightning_compat import averaged_model


def callbacks(
    folder: Any, model: Any, data: Any, *, ema_decay: float | None = None, swa_epoch: int | None = None
) -> list[Callback]:
    """An average, or none.

    Args:
        ema_decay: validate, keep and test an exponential moving average of the weights, such as 0.999.
        swa_epoch: from the end of this epoch on (the first is 1) validate, keep and test the mean of the weights.

    Raises: UsageError: both are given.
    """
    if ema_decay is not None and swa_epoch is not None:
        raise UsageError("--swa_epoch and --ema_decay are two averages of the weights: give one of them")
    return [EMA(ema_decay)] if ema_decay is not None else [SWA(swa_epoch)] if swa_epoch is not None else []


class EMA(EMAWeightAveraging):
    """The exponential moving average of the weights, as each step changes them."""

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # else, in the test after training too, the average that has been loaded is meant
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class SWA(WeightAveraging):
    """The equal mean of the weights after each epoch from `first` on (Izmailov et al., 2018, arXiv:1803.05407).

    It is taken before the epoch's validation, so that what is validated, saved and tested is the mean. Until then all
    is as without it. The running statistics of batch norm are averaged like the weights.
    Raises: UsageError: the run ends before.
    """

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and 0 <= (trainer.max_epochs or 0) < self.first:
            raise UsageError(f"--swa_epoch {self.first}: the run ends before, with --max_epochs {trainer.max_epochs}")
        super().setup(trainer, pl_module, stage)

    @property
    def _begun(self) -> bool:
        return (average := averaged_model(self)) is not None and bool(average.n_averaged)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Never where Lightning asks: the end of an epoch comes after its validation."""
        return False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_last_batch and trainer.current_epoch + 1 >= self.first:
            averaged_model(self).update_parameters(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._begun:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._begun:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._begun:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._begun:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and "averaging_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
