"""EarlyStopping: ends a run whose monitored metric does not get better, and says so."""

from collections.abc import Callable
from typing import Any, Literal

from pytorch_lightning import LightningModule, Trainer, callbacks
from pytorch_lightning.utilities import rank_zero_only

from engine.checkpointing.monitor_mode import Monitored
from engine.errors import UsageError


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, which says why it stops; a resumed run takes the `patience` that it is given.

    A metric that is NaN stops the run, or, unless `bad_steps` is "stop", counts as one that is no better.

    Raises: FloatingPointError: the metric is NaN, and `bad_steps` is "stop".
    """

    def __init__(self, monitored: Monitored, patience: int, bad_steps: Literal["stop", "skip", "ignore"]) -> None:
        mode, of_training = monitored.mode or "min", monitored.of_training
        options: dict[str, Any] = {"check_finite": False, "check_on_train_epoch_end": of_training}
        super().__init__(monitored.name, mode=mode, patience=patience, **options)
        self.bad_steps, self.of_training = bad_steps, of_training

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.limit_val_batches == 0 and not self.of_training:
            hint = "and this run has no validation: --monitor train_loss"
            raise UsageError(f"--patience waits for {self.monitor}, {hint}")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.wait_count and self.wait_count >= self.patience:  # it was over when it was saved
            trainer.should_stop = True
            rank_zero_only(print)(f"{self._reason()}; to go on, give a longer --patience", flush=True)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check(trainer, lambda: super(EarlyStopping, self).on_validation_end(trainer, module))

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check(trainer, lambda: super(EarlyStopping, self).on_train_epoch_end(trainer, module))

    def _check(self, trainer: Trainer, check: Callable[[], None]) -> None:
        before = self.wait_count
        check()
        if self.wait_count > before and trainer.callback_metrics[self.monitor].isnan():
            problem = f"{self.monitor} is NaN after step {trainer.global_step} (epoch {trainer.current_epoch + 1})"
            if self.bad_steps == "stop":
                raise FloatingPointError(f"{problem}; with --bad_steps skip it counts as no better")
            rank_zero_only(print)(f"{problem}, which counts as no better", flush=True)
        if self.wait_count > before and self.wait_count >= self.patience:
            rank_zero_only(print)(self._reason(), flush=True)

    def _reason(self) -> str:
        best = f"the best {self.monitor} is {float(self.best_score):.6g}"
        return f"stopped early: {best}, and {self.wait_count} validations since were no better"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the count, not the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})
