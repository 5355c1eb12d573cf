"""The checkpoint callbacks: the best ones, and the last one, from which a run is resumed exactly."""

import os
import time
from pathlib import Path
from typing import Any, Literal, NoReturn

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from engine.checkpointing.run_folder import resume_command
from engine.launch.signals import SignalListener, exit_on_signal, ignore_signals
from engine.lightning_compat import mark_validation_as_interrupted


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that keeps the best ones; their folder may be moved between two runs."""

    state_key = "BestCheckpoint"  # Lightning's builds its key anew at every hook

    def __init__(self, folder: Path, monitor: str, mode: Literal["min", "max"], save_top_k: int) -> None:
        super().__init__(
            folder,
            "best-{epoch}-{" + monitor + ":.6f}",
            monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_on_train_epoch_end=monitor.startswith("train_"),
            enable_version_counter=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """The best checkpoints so far, by their file names: whoever gets the file learns nothing of this machine."""
        state = super().state_dict()
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        names = {key: os.path.basename(state[key]) for key in paths}
        models = {os.path.basename(path): score for path, score in state["best_k_models"].items()}
        return {**state, **names, "best_k_models": models, "dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best checkpoints so far, by their file names."""

        def moved(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path

        paths = {
            name: moved(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        models = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": models, "dirpath": str(self.dirpath)})


class LastCheckpoint(Checkpoint):
    """Keeps last.ckpt, and on a signal saves it and ends the run with exit status 128 + n.

    It saves only where a resumed run repeats the rest exactly: right after an optimizer step or, where a validation
    follows that step, at the start of the validation, which the resumed run then does first; never between batches
    whose gradients accumulate. As a `Checkpoint` it runs after all other callbacks.

    run_dir: the run folder. every_n_train_steps, every_n_minutes: when to save besides the end of each epoch.
    """

    def __init__(
        self, run_dir: Path, every_n_train_steps: int | None = None, every_n_minutes: float | None = None
    ) -> None:
        self.run_dir, self.every_n_train_steps, self.every_n_minutes = run_dir, every_n_train_steps, every_n_minutes
        self.path = run_dir / "checkpoints" / "last.ckpt"
        self.signals = SignalListener()
        self._stepped = self._due = self._validating = self._saving = False
        self._step, self._saved_at = 0, time.monotonic()

    @property
    def received(self) -> int:
        """The signal that ends the run, 0 for none."""
        return self.signals.received

    def _install(self, *_: Any) -> None:
        self.signals.install()

    # After Lightning has set its own handlers, which end a run with status 0 and nothing saved.
    on_sanity_check_start = on_test_start = on_predict_start = _install  # type: ignore[assignment]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()
        self.signals.defer, self._step = True, trainer.global_step

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.defer = False
        if self.signals.agree(trainer, now=True):  # after the last save
            self._exit(trainer)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.signals.restore()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        before, self._step = self._step, trainer.global_step
        self._stepped = self._step != before
        every = self.every_n_train_steps
        if every and self._step // every != before // every:
            self._due = True
        if self._stepped and not _validates_after(trainer, batch_idx):
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()
        if self.signals.defer and self._stepped:  # saved first, as a validation may take long
            self._due = self._validating = True
            self._save_if_due(trainer)
        self.signals.ask_soon()

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._saving and self._validating:
            mark_validation_as_interrupted(checkpoint)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._validating and self.signals.agree(trainer):
            self._exit(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validating = False
        self.signals.ask_soon()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._due = True
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        due = self._due
        if self.every_n_minutes:
            late = time.monotonic() - self._saved_at > 60 * self.every_n_minutes
            due = due or trainer.strategy.reduce_boolean_decision(late, all=False)
        if self.signals.agree(trainer, now=due) or due:
            self._saving = True
            trainer.save_checkpoint(self.path)
            self._saving = self._due = False
            self._saved_at = time.monotonic()
        if self.received:
            self._exit(trainer)

    def _exit(self, trainer: Trainer) -> NoReturn:
        if not trainer.is_global_zero:
            raise SystemExit(128 + self.received)
        ignore_signals()  # srun ends the rest of a job as soon as one rank is gone: this line comes first
        print(f"stopped by a signal and saved; this goes on:\n{resume_command(self.run_dir)}", flush=True)
        exit_on_signal(self.received)


def _validates_after(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the end of the epoch or a validation comes next, which saves itself."""
    every_epochs = trainer.check_val_every_n_epoch
    if trainer.is_last_batch:
        return True
    if (
        not trainer.enable_validation
        or trainer.val_check_batch is None
        or (every_epochs and (trainer.current_epoch + 1) % every_epochs)
    ):
        return False
    done = (batch_idx if every_epochs else trainer.fit_loop.total_batch_idx) + 1
    return done % trainer.val_check_batch == 0
