"""`--ema_decay` and `--swa_epoch`: EMA or SWA weights are validated, saved and tested in place of the trained ones."""

from typing import Annotated, Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging
from pytorch_lightning.utilities import rank_zero_only

from engine.errors import UsageError
from engine.lightning_compat import averaged_model


def callbacks(
    *, ema_decay: Annotated[float, ">= 0", "< 1"] | None = None, swa_epoch: Annotated[int, ">= 1"] | None = None
) -> list[Callback]:
    """The callback of the flags, or the one that resumes without an average.

    ema_decay: validate, save and test an exponential moving average of the weights, such as 0.999.
    swa_epoch: validate, save and test the mean of the weights since the end of this epoch (the first is 1).

    Raises: UsageError: both are given.
    """
    if ema_decay is not None and swa_epoch is not None:
        raise UsageError("--swa_epoch and --ema_decay both average the weights: give one of them")
    if ema_decay is not None:
        return [EMA(decay=ema_decay)]
    return [ResumeWithoutAveraging() if swa_epoch is None else SWA(swa_epoch)]


class ResumeWithoutAveraging(Callback):
    """Resumes with the trained weights where the run averaged them until now."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])
            rank_zero_only(print)("goes on with the trained weights, not with their average", flush=True)


def _drop_average_of(other: type[Callback], checkpoint: dict[str, Any], module: LightningModule) -> dict[str, Any]:
    """The checkpoint; where the run averaged in the other way until now, its trained weights alone."""
    if other.__name__ not in checkpoint.get("callbacks", {}) or "current_model_state" not in checkpoint:
        return checkpoint
    module.load_state_dict(checkpoint["current_model_state"])
    return {"state_dict": checkpoint["current_model_state"]}


class EMA(EMAWeightAveraging):
    """The exponential moving average of the weights, updated after each optimizer step."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # the test after training uses the average that is loaded
            state = _drop_average_of(SWA, checkpoint, pl_module)
            super().on_load_checkpoint(trainer, pl_module, state)
            if "averaging_state" not in state:
                averaged_model(self).n_averaged.fill_(1)  # the weights of the checkpoint are the first of the average


class SWA(WeightAveraging):
    """The equal mean of the weights after each epoch from `first_epoch` on (Izmailov et al., 2018, arXiv:1803.05407).

    The mean is updated before the epoch's validation, so that what is validated, saved and tested is the mean; before
    `first_epoch` nothing changes. The running statistics of batch norm are averaged like the weights.
    Raises: UsageError: the run ends before `first_epoch`.
    """

    def __init__(self, first_epoch: int) -> None:
        super().__init__()
        self.first_epoch = first_epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and 0 <= (trainer.max_epochs or 0) < self.first_epoch:
            raise UsageError(f"--swa_epoch {self.first_epoch}: the run ends before, at epoch {trainer.max_epochs}")
        super().setup(trainer, pl_module, stage)

    @property
    def _has_started(self) -> bool:
        model = averaged_model(self)
        return model is not None and bool(model.n_averaged)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """False: Lightning asks at the end of an epoch, which is after its validation."""
        return False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_last_batch and trainer.current_epoch + 1 >= self.first_epoch:
            averaged_model(self).update_parameters(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_started:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_started:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_started:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._has_started:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and "averaging_state" in (state := _drop_average_of(EMA, checkpoint, pl_module)):
            super().on_load_checkpoint(trainer, pl_module, state)
