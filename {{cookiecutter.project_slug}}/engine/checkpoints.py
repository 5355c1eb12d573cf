"""Checkpoints that a kill cannot break, that a run goes on from exactly, and that a stranger cannot make run code."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, makes it durable, and only then gives it its name."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves; at every moment `path` is the old file or the new one, whole."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Loads plain values and tensors; a file that holds anything else is refused."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's best checkpoints, in a folder that may be moved or copied between two runs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what is best so far, by the names of the files."""

        def here(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": models, "dirpath": str(self.dirpath)})


class LastCheckpoint(Checkpoint):
    """Keeps last.ckpt, and on a signal saves it and ends the run with exit status 128 + n.

    It saves only where a resumed run repeats the rest exactly: right after an optimiser step, or after the validation
    that follows it, never between the two, nor among gradients that are still accumulating. As a `Checkpoint` it runs
    after all other callbacks. A signal that comes during validation waits for its end; a second one does not wait.

    folder: of the run. every_n_train_steps, every_n_minutes: when to save besides the end of each epoch.
    """

    def __init__(
        self, folder: Path, every_n_train_steps: int | None = None, every_n_minutes: float | None = None
    ) -> None:
        self.folder, self.every_n_train_steps, self.every_n_minutes = folder, every_n_train_steps, every_n_minutes
        self.path = folder / "checkpoints" / "last.ckpt"
        self.received = 0
        self._step, self._saved = 0, time.monotonic()
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: Any) -> None:
        if self.received:
            raise SystemExit(128 + number)
        self.received = number

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._step and not _validates_after(trainer, batch_idx):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save_if_due(trainer, due=True)

    def _save_if_due(self, trainer: Trainer, due: bool = False) -> None:
        every, self._step = self.every_n_train_steps, trainer.global_step
        due = due or bool(every and trainer.global_step % every == 0)
        if self.every_n_minutes:
            late = time.monotonic() - self._saved > 60 * self.every_n_minutes
            due = due or trainer.strategy.reduce_boolean_decision(late, all=False)
        stop = bool(self.received)
        if trainer.world_size > 1:  # one rank's signal is all ranks' signal
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if due or stop:
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()
        if stop:
            if trainer.is_global_zero:
                print(
                    f"stopped by a signal and saved; this goes on:\npython main.py --ckpt_path {self.folder}",
                    flush=True,
                )
            raise SystemExit(128 + (self.received or signal.SIGTERM))


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


def flags_of(path: Path) -> dict[str, Any]:
    """The flags of the run that wrote a checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["hyper_parameters"]
