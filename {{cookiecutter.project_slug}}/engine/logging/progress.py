"""Progress of training: a bar on a terminal, a line per epoch in a log file."""

import sys
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from tqdm.std import tqdm as text_bar

from engine.checkpointing.run_records import without_duplicates
from engine.launch.safe_stdio import is_notebook


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, drawn a few times a second instead of every so many steps."""

    _drawn = 0.0

    @property
    def refresh_rate(self) -> int:
        """Steps between two refreshes: 1 where the last one is 0.2 s ago, else more than there are."""
        now = time.monotonic()
        if now - self._drawn < 0.2:
            return sys.maxsize
        self._drawn = now
        return 1

    def init_validation_tqdm(self) -> Tqdm:
        """No second bar in a notebook without ipywidgets: text cannot go back to the line above."""
        as_text = Tqdm.display is text_bar.display
        return Tqdm(disable=True) if is_notebook() and as_text else super().init_validation_tqdm()

    def on_train_epoch_start(self, trainer: Trainer, *unused: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"epoch {_epoch_of(trainer.current_epoch + 1, trainer)}")

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """The metrics beside the bar, without the version number, which the first line of the output has."""
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}


class EpochLines(Callback):
    """Prints a line per epoch where the output is a log file, which a progress bar would flood."""

    def __init__(self) -> None:
        self._start = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.fit_loop.restarted_mid_epoch:  # where on_train_epoch_start is left out
            self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._line(trainer)
        self._start = time.monotonic()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._line(trainer)

    def _line(self, trainer: Trainer) -> None:
        if not self._start or not trainer.is_global_zero:
            return
        epoch = _epoch_of(trainer.fit_loop.epoch_progress.current.completed, trainer)
        values = without_duplicates({name: value.item() for name, value in sorted(trainer.callback_metrics.items())})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"epoch {epoch}  {shown}  {time.monotonic() - self._start:.1f} s", flush=True)
        self._start = 0.0


def _epoch_of(epoch: int, trainer: Trainer) -> str:
    """ "3/10": the epoch, from 1, and how many are planned, if that is known."""
    return f"{epoch}/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else f"{epoch}"
