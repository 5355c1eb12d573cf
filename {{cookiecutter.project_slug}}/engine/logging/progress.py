"""The progress of training: a bar on a terminal, a line an epoch in a log file."""

import sys
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, drawn a few times a second instead of every so many steps."""

    _drawn = 0.0

    @property
    def refresh_rate(self) -> int:
        """Steps between two drawings: this one, or none in sight."""
        now = time.monotonic()
        if now - self._drawn < 0.2:
            return sys.maxsize
        self._drawn = now
        return 1

    def on_train_epoch_start(self, trainer: Trainer, *unused: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"epoch {_counted(trainer.current_epoch + 1, trainer)}")

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar: the metrics, but not the run, whose folder stands in its first line."""
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}


class EpochLines(Callback):
    """A plain line for each epoch, in place of a progress bar that would flood a log file."""

    def __init__(self) -> None:
        self.began = 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._line(trainer)
        self.began = time.monotonic()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._line(trainer)

    def _line(self, trainer: Trainer) -> None:
        if not self.began or not trainer.is_global_zero:
            return
        epoch = _counted(trainer.fit_loop.epoch_progress.current.completed, trainer)
        values = "  ".join(f"{name} {value:.4g}" for name, value in sorted(trainer.callback_metrics.items()))
        print(f"epoch {epoch}  {values}  {time.monotonic() - self.began:.1f} s", flush=True)
        self.began = 0.0


def _counted(epoch: int, trainer: Trainer) -> str:
    """An epoch, from 1, of those planned."""
    return f"{epoch}/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else f"{epoch}"
