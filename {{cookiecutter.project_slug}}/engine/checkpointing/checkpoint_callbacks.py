"""When a run is saved: the best states, and the last one, from which it goes on exactly, also when a signal ends it."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from engine.launch import cluster_job
from engine.launch.cluster_job import SIGNALS
from engine.lightning_compat import mark_validation_as_interrupted


class BestCheckpoint(ModelCheckpoint):
    """Lightning's best checkpoints, in a folder that may be moved or copied between two runs."""

    state_key = "BestCheckpoint"  # Lightning's own is put together anew for every hook of every step

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what is best so far, by the names of the files."""

        def here(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": models, "dirpath": str(self.dirpath)})


class LastCheckpoint(Checkpoint):
    """Keeps last.ckpt, and on a signal saves it and ends the run with exit status 128 + n.

    It saves only where a resumed run repeats the rest exactly: right after an optimiser step, or where one is followed
    by a validation, at the beginning of that, which the resumed run then does first; never among gradients that are
    still accumulating. As a `Checkpoint` it runs after all other callbacks.
    A second signal does not wait for the save.

    folder: of the run. every_n_train_steps, every_n_minutes: when to save besides the end of each epoch.
    """

    def __init__(
        self, folder: Path, every_n_train_steps: int | None = None, every_n_minutes: float | None = None
    ) -> None:
        self.folder, self.every_n_train_steps, self.every_n_minutes = folder, every_n_train_steps, every_n_minutes
        self.path = folder / "checkpoints" / "last.ckpt"
        self.received = self._heard = 0  # by any process, by this one
        self._training = self._stepped = self._due = self._validating = self._saving = False
        self._step, self._saved = 0, time.monotonic()
        self._calls, self._ask_at, self._asked = 0, 1, time.monotonic()
        self._before: dict[int, Any] = {}

    def _listen(self, trainer: Trainer, *_: Any) -> None:
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    # After Lightning has set its own handlers, which end a run with status 0 and nothing saved.
    on_sanity_check_start = on_test_start = on_predict_start = _listen  # type: ignore[assignment]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._listen(trainer)
        self._training, self._step = True, trainer.global_step

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._training = False
        if self._stops(trainer, ask=True):  # after the last save
            self._end(trainer)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before, self._training = {}, False

    def _receive(self, number: int, frame: Any) -> None:
        if self._heard or not self._training:
            cluster_job.exit_on_signal(number)
        self._heard = number

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        before, self._step = self._step, trainer.global_step
        self._stepped = self._step != before
        every = self.every_n_train_steps
        if every and self._step // every != before // every:
            self._due = True
        if self._stepped and not _validates_after(trainer, batch_idx):
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._listen(trainer)
        if self._training and self._stepped:  # it may take long: what was learned before it is safe first
            self._due = self._validating = True
            self._save_if_due(trainer)
        self._ask_at = 1  # its batches may be far slower than a step

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._saving and self._validating:
            mark_validation_as_interrupted(checkpoint)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._validating and self._stops(trainer):
            self._end(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validating, self._ask_at = False, 1

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._due = True
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        due = self._due
        if self.every_n_minutes:
            late = time.monotonic() - self._saved > 60 * self.every_n_minutes
            due = due or trainer.strategy.reduce_boolean_decision(late, all=False)
        if self._stops(trainer, ask=due) or due:
            self._saving = True
            trainer.save_checkpoint(self.path)
            self._saving = self._due = False
            self._saved = time.monotonic()
        if self.received:
            self._end(trainer)

    def _stops(self, trainer: Trainer, ask: bool = False) -> bool:
        """Whether a signal has come. Several processes ask each other once a second, which is every so many calls."""
        self.received = self._heard
        if trainer.world_size > 1:
            self._calls += 1
            if self._calls < self._ask_at and not ask:
                self.received = 0
                return False
            now, device = time.monotonic(), trainer.strategy.root_device
            pace = int(self._calls / max(now - self._asked, 0.01))
            told = torch.tensor([self._heard, max(1, min(pace, 100))], device=device)
            self.received, self._ask_at = trainer.strategy.reduce(told, reduce_op="max").tolist()
            self._calls, self._asked = 0, now
        return bool(self.received)

    def _end(self, trainer: Trainer) -> NoReturn:
        if not trainer.is_global_zero:
            raise SystemExit(128 + self.received)
        for number in SIGNALS:  # srun ends what is left of a job as soon as one rank is gone: these lines come first
            signal.signal(number, signal.SIG_IGN)
        print(f"stopped by a signal and saved; this goes on:\npython main.py --ckpt_path {self.folder}", flush=True)
        cluster_job.exit_on_signal(self.received)


def _validates_after(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the epoch's end or a validation within the epoch comes next: there is a better moment to save."""
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
