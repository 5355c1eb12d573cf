"""The checkpoint callbacks: the best ones, and the last one, from which a run is resumed exactly."""

import glob
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from engine.checkpointing import run_folder
from engine.checkpointing.atomic_write import write_atomically
from engine.checkpointing.monitor_mode import Monitored, file_name, mode_of
from engine.checkpointing.run_folder import resume_command
from engine.cli.settings import Settings
from engine.errors import UsageError, nearest
from engine.launch.signals import SignalListener, exit_on_signal, ignore_signals
from engine.lightning_compat import call_after_logging, mark_validation_as_interrupted

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")  # in the state of a ModelCheckpoint


class SaveConfig(Callback):
    """Writes config.yaml when training starts, and into each checkpoint which of the run's flags nobody gave."""

    def __init__(self, settings: Settings, run_dir: Path) -> None:
        self.settings, self.run_dir = settings, run_dir

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if check_resume := getattr(trainer.train_dataloader, "check_resume", None):  # of a loader of ours
            check_resume()  # a change that is refused leaves config.yaml as it is
        if trainer.is_global_zero:
            write_atomically(self.run_dir / "config.yaml", run_folder.config_text(self.settings))

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["default_flags"] = sorted(self.settings.defaults)


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that keeps the best ones, none whose metric is NaN.

    Between two runs their folder may be moved, `save_top_k` changed, and `monitor` too: the best is then found anew.
    Files of a run that went on elsewhere, or was killed, and that this one does not write again, are removed.

    monitored: where its metric is not logged, and not required either, the latest epoch is the best.
    """

    state_key = "BestCheckpoint"  # Lightning's builds its key anew at every hook

    def __init__(self, folder: Path, monitored: Monitored, save_top_k: int) -> None:
        self.required, self.of_training, self._mode = monitored.required, monitored.of_training, monitored.mode
        super().__init__(
            folder,
            f"best-epoch{{epoch}}-{file_name(monitored.name)}={{{monitored.name}:.6f}}",
            monitored.name,
            auto_insert_metric_name=False,
            mode=monitored.mode or "min",
            save_top_k=save_top_k,
            save_on_train_epoch_end=self.of_training,
            enable_version_counter=False,
        )
        self._unknown, self._found_anew = set[str](), ""

    def state_dict(self) -> dict[str, Any]:
        """The best checkpoints so far, by their file names: whoever gets the file learns nothing of this machine."""
        state = super().state_dict()
        names = {key: os.path.basename(state[key]) for key in _PATHS}
        models = {os.path.basename(path): score for path, score in state["best_k_models"].items()}
        return {**state, **names, "best_k_models": models, "dirpath": "", "mode": self.mode}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.of_training:
            self._check_monitor(trainer, pl_module)  # in the sanity check too: before it is trained in vain
        super().on_validation_end(trainer, pl_module)
        self._remove_unknown(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.of_training:
            self._check_monitor(trainer, pl_module)

    def after_epoch(self, trainer: Trainer) -> None:
        """Saves by a metric of the training, once the epoch's values are logged and reset."""
        if self.of_training:
            super().on_train_epoch_end(trainer, trainer.lightning_module)
            self._remove_unknown(trainer)

    def _check_monitor(self, trainer: Trainer, module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics or self.monitor == "epoch":
            if self._mode is None:
                mode_of(str(self.monitor))
            return
        if trainer.sanity_checking and len(trainer.num_sanity_val_batches) > 1:
            return  # of several validation sets Lightning does not tell the names yet
        logged = ", ".join(trainer.callback_metrics) or "nothing"
        missing = f"{type(module).__name__} logs no {self.monitor}, but {logged}"
        if self.required:
            near = nearest(str(self.monitor), trainer.callback_metrics)
            raise UsageError(f"--monitor {self.monitor}: {missing}{near}")
        line = f"{missing}: the latest epoch counts as the best, unless --monitor names one of these"
        rank_zero_only(print)(line, flush=True)
        self._follow_epochs()

    def _follow_epochs(self) -> None:
        self.monitor, self.mode, self.filename = "epoch", "max", "best-epoch{epoch}-epoch={epoch:.0f}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best checkpoints so far, by their file names, if they are the best by the same metric."""

        def moved(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path

        if state_dict["monitor"] == "epoch" and not self.required:
            self._follow_epochs()
        if (before := (state_dict["monitor"], state_dict.get("mode", self.mode))) != (self.monitor, self.mode):
            found = f"the best checkpoint is found anew, by {self.monitor} ({self.mode})"
            self._found_anew = f"{found}: until now it was by {before[0]} ({before[1]})"
            return
        paths = {name: moved(state_dict[name]) for name in _PATHS}
        models = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": models, "dirpath": str(self.dirpath)})
        self.current_score = state_dict["current_score"]  # which Lightning leaves out

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        if self._found_anew:
            rank_zero_only(print)(self._found_anew, flush=True)
        models = sorted(self.best_k_models, key=lambda path: float(self.best_k_models[path]))  # rising
        models = models[::-1] if self.mode == "max" else models
        while 0 <= self.save_top_k < len(models):
            self._remove(trainer, models.pop())
        self.best_k_models = {path: score for path, score in self.best_k_models.items() if path in models}
        if models and len(models) == self.save_top_k:
            self.kth_best_model_path, self.kth_value = models[-1], self.best_k_models[models[-1]]
        pattern = f"best-*-{glob.escape(file_name(str(self.monitor)))}=*.ckpt"
        self._unknown = {str(path) for path in Path(str(self.dirpath)).glob(pattern)} - self.best_k_models.keys()

    def _remove_unknown(self, trainer: Trainer) -> None:
        """Removes the earlier checkpoints that are not among the best, once there are better ones."""
        if self._unknown and self.best_k_models and not trainer.sanity_checking:
            for path in sorted(self._unknown - self.best_k_models.keys()):
                self._remove(trainer, path)
                why = "which is later than the checkpoint that the run has gone on from"
                rank_zero_only(print)(f"removed {path}, {why}", flush=True)
            self._unknown = set()

    def _remove(self, trainer: Trainer, path: str) -> None:
        if Path(path).absolute() != Path(str(trainer.ckpt_path)).absolute():
            trainer.strategy.remove_checkpoint(path)

    def format_checkpoint_name(self, metrics: dict[str, Tensor], *args: Any, **kwargs: Any) -> str:
        """The path of a checkpoint, with the epoch counted from 1."""
        return super().format_checkpoint_name({**metrics, "epoch": metrics["epoch"] + 1}, *args, **kwargs)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a value of the metric is among the best; NaN never is, the latest epoch always."""
        if self.monitor == "epoch":
            return True
        return current is not None and not current.isnan() and super().check_monitor_top_k(trainer, current)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        done = trainer.fit_loop.batch_idx + 1
        if done % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            checkpoint["accumulating"] = True  # a validation between batches whose gradients accumulate

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and checkpoint.get("accumulating"):
            said = f"{trainer.ckpt_path} was saved between batches whose gradients accumulate, which are not in it"
            raise UsageError(f"{said}: go on with last.ckpt, or begin anew with --init_from")


class LastCheckpoint(Checkpoint):
    """Keeps last.ckpt, and on a signal saves it and ends the run with exit status 128 + n.

    It saves only where a resumed run repeats the rest exactly: when all hooks of an optimizer step have run or, where a
    validation follows that step, at the start of the validation, which the resumed run then does first; never between
    batches whose gradients accumulate. Where max_steps, max_time or early stopping ends a run within an epoch, that is
    before what ends the epoch: with a later end, the run goes on as if it had not ended. As a `Checkpoint` it runs
    after all other callbacks.

    run_dir: the run folder. every_n_train_steps, every_n_minutes: when to save besides the end of each epoch.
    """

    def __init__(self, run_dir: Path, every_n_train_steps: int | None, every_n_minutes: float | None) -> None:
        self.run_dir, self.every_n_train_steps, self.every_n_minutes = run_dir, every_n_train_steps, every_n_minutes
        self.path = run_dir / "checkpoints" / "last.ckpt"
        self.signals = SignalListener()
        self._stepped = self._due = self._validates = self._validating = self._saving = self._stops = False
        self._step, self._saved_at = 0, time.monotonic()
        self._weights: set[str] | None = None  # the names of those that there are when training begins

    def _install(self, *_: Any) -> None:
        self.signals.install()

    # After Lightning has set its own handlers, which end a run with status 0 and nothing saved.
    on_sanity_check_start = on_test_start = on_predict_start = _install  # type: ignore[assignment]

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit":
            call_after_logging(trainer, partial(self._after_batch, trainer), partial(self._after_epoch, trainer))
            self._weights = _names(module)

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        before, self._weights = self._weights or set(), _names(module)
        if (added := sorted(self._weights - before)) and trainer.is_global_zero:
            needs = "setup(stage) must build it for every stage, for a checkpoint has it"
            print(f"{added[0]} was built by {type(module).__name__}.setup or configure_model: {needs}", flush=True)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()
        self.signals.defer, self._step = True, trainer.global_step

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.defer = False
        if self.signals.agree(trainer, now=True):  # after the last save
            self._exit(trainer)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.signals.restore()

    def _after_batch(self, trainer: Trainer) -> None:
        before, self._step = self._step, trainer.global_step
        self._stepped = self._step != before
        every = self.every_n_train_steps
        if every and self._step // every != before // every:
            self._due = True
        self._stops |= trainer.should_stop
        trainer.should_stop = self._stops and self._stepped  # not between batches whose gradients accumulate
        least = trainer.min_epochs or 0, trainer.min_steps or 0
        ends = trainer.should_stop and trainer.current_epoch >= least[0] and self._step >= least[1]
        if ends or 0 <= trainer.max_steps <= self._step:
            self._due = True
        self._validates = _validates_after(trainer, trainer.fit_loop.batch_idx)
        if self._stepped and not self._validates:
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()
        due = self._validates or not trainer.should_stop  # not where Lightning validates only because the run ends
        if self.signals.defer and self._stepped and due:  # saved first, as a validation may take long
            self._due = self._validating = True
            self._save_if_due(trainer)
        self.signals.ask_soon()

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._weights and (late := sorted(_names(module) - self._weights)):
            ways = "build it in __init__, or keep what only training needs out of the network: self.teacher = [teacher]"
            raise UsageError(f"{late[0]} came when training began, too late to be read from a checkpoint again: {ways}")
        if self._saving and self._validating:
            mark_validation_as_interrupted(checkpoint)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._validating and self.signals.agree(trainer):
            self._exit(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validating = False
        self.signals.ask_soon()

    def _after_epoch(self, trainer: Trainer) -> None:
        for one in trainer.checkpoint_callbacks:
            if isinstance(one, BestCheckpoint):
                one.after_epoch(trainer)
        if trainer.is_last_batch:
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
        if self.signals.received:
            self._exit(trainer)

    def _exit(self, trainer: Trainer) -> NoReturn:
        if not trainer.is_global_zero:
            raise SystemExit(128 + self.signals.received)
        ignore_signals()  # srun ends the rest of a job as soon as one rank is gone: this line comes first
        print(f"stopped by a signal and saved; this goes on:\n{resume_command(self.run_dir)}", flush=True)
        exit_on_signal(self.signals.received)


def _names(module: LightningModule) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def _validates_after(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the end of the epoch or a validation comes next, each of which saves anyway."""
    every_epochs = trainer.check_val_every_n_epoch
    if trainer.is_last_batch:
        return True
    done = (batch_idx if every_epochs else trainer.fit_loop.total_batch_idx) + 1
    if trainer.val_check_batch is None or done % trainer.val_check_batch:
        return False
    return trainer.enable_validation and not (every_epochs and (trainer.current_epoch + 1) % every_epochs)
