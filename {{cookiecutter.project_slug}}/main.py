#!/usr/bin/env python
# PYTHON_ARGCOMPLETE_OK
"""Command line -> data, network, callbacks, loggers -> Trainer. For the flags: `python main.py --help`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from engine.checkpointing import checkpoint_flags, run_folder
from engine.cli import parser
from engine.cli.features_and_commands import load_features
from engine.cli.settings import Settings
from engine.errors import print_own_frames
from engine.launch import safe_stdio, signals
from engine.training.run_action import needs_trainer, print_start, run_action, run_wrapped

if TYPE_CHECKING:  # imported once the command line is valid
    from pytorch_lightning import Callback, LightningModule

    from data import DInterface
    from engine.training.loaded_run import LoadedRun

SEEDS = (1, 17, 42, 101, 271, 828, 1234, 1828, 2718, 31415)  # --seed_index 1 to 10: the same in every report


def parse(argv: list[str]) -> Settings:
    """The settings of a command line; help and errors end the program, with exit status 0 or 2."""
    return parser.parse(argv, SEEDS, checkpoint_flags.restore, checkpoint_flags.find_config)


def main(argv: list[str] | None = None, callbacks: "Sequence[Callback]" = ()) -> dict[str, float]:
    """Runs a command line (by default sys.argv) and returns its metrics; SystemExit(2) where it is wrong.

    callbacks: additional ones, of a program that calls this.
    """
    signals.handle_early_signals()
    with safe_stdio.ignore_output_errors():
        settings = parse(sys.argv[1:] if argv is None else argv)
        return run_wrapped(settings, lambda one: run(one, callbacks, **one.arguments["run"]))


def run(
    settings: Settings,
    extra_callbacks: "Sequence[Callback]" = (),
    *,
    model_name: str,
    dataset: str,
    ckpt_path: str | None = None,
    init_from: str | None = None,
    init_partial: bool = False,
    trust: bool = False,
    seed: Annotated[int, ">= 0", "<= 4294967295"] = 0,
    seed_index: Annotated[int, ">= 1"] | None = None,
    max_epochs: Annotated[int, ">= -1", "!= 0"] | None = None,
    log_every_n_steps: Annotated[int, ">= 1"] = 20,
    enable_progress_bar: bool | None = None,
    default_root_dir: str = ".",
    hang_minutes: Annotated[float, ">= 0.01"] = 10.0,
) -> dict[str, float]:
    """Builds everything and runs the action. The arguments behind the `*` are flags.

    model_name: a file of model/, or a dotted path to a class.
    dataset: a file of data/, or a dotted path to a class.
    ckpt_path: checkpoint to resume or evaluate: last or best of the newest run, version_N, a --run_name, a run folder,
        a file or an address.
    init_from: start a new run from the weights of such a checkpoint, or of a file of weights; or evaluate those.
    init_partial: load only those weights of init_from whose name and shape fit the network.
    trust: import the network, dataset, loss and optimizer that a checkpoint names, from anywhere; may run any code.
    seed: determines the first weights, the splits, the order of the items and every random draw.
    seed_index: take the seed at this position, from 1, of the list SEEDS in main.py, for repeated runs.
    max_epochs: number of epochs to train; -1 for no end; none means 10, or no end where max_steps or max_time is given.
    log_every_n_steps: optimiser steps between two logged values of train_loss_step.
    enable_progress_bar: show a progress bar, or else print a line per epoch; none shows one in a terminal.
    default_root_dir: folder in which lightning_logs/ is created.
    hang_minutes: minutes without progress after which each process prints its stack; if there are several, they end.
    """
    from pytorch_lightning import seed_everything

    from data import build_data
    from engine.checkpointing import checkpoint_io
    from engine.launch import watchdog
    from engine.logging import loggers
    from engine.training import trainer_setup
    from model import MInterface

    trainer_setup.silence_warnings()
    build = {"build_data": build_data, "build_model": MInterface.from_settings}
    if not needs_trainer(settings.action):
        return run_action(settings, build)
    groups = settings.arguments
    loggers.check(settings.action, **groups["loggers"])
    seed_everything(seed, verbose=False)
    data = build_data(settings)
    model = MInterface.from_settings(settings, data)
    if init_from and not settings.ckpt_path:  # a resumed run has weights of its own
        checkpoint_io.init_weights(model, Path(init_from), init_partial, settings.action != "fit")
    prepared = trainer_setup.configure(model, data, groups["trainer"].get("strategy"), **groups["hardware"])
    run_dir = run_folder.open_run(settings, default_root_dir)
    bar = safe_stdio.is_terminal() if enable_progress_bar is None else enable_progress_bar
    callbacks = load_callbacks(run_dir, model, data, bar, **groups["callbacks"])
    trainer = trainer_setup.make_run_trainer(
        settings,
        model,
        data,
        run_dir,
        max_epochs=max_epochs,
        log_every_n_steps=log_every_n_steps,
        enable_progress_bar=bar,
        callbacks=[*callbacks, *load_features(run_dir, model, data, groups), *extra_callbacks],
        logger=loggers.build(run_dir, **groups["loggers"]) if settings.action == "fit" else [],  # + [YourLogger()]
    )
    print_start(settings, trainer, run_dir, [*prepared, *getattr(model, "notes", ())])
    with watchdog.watch(trainer, hang_minutes):
        context = build | {"trainer": trainer, "model": model, "data": data, "run_dir": run_dir}
        metrics = run_action(settings, context) or {}
    run_folder.finish(trainer, run_dir, settings.job_id, metrics)
    return metrics


def load(ckpt_path: str, *argv: str) -> "LoadedRun":
    """A trained run, for a notebook in any folder: its network, its data, its flags, and `predict`.

    ckpt_path: as of --ckpt_path: "best" of the newest run. argv: further flags, such as "--data_dir", "elsewhere".
    """
    from data import build_data
    from engine.training import loaded_run
    from model import MInterface

    return loaded_run.load(ckpt_path, argv, parse, build_data, MInterface.from_settings)


def load_callbacks(
    run_dir: Path,
    model: "LightningModule",
    data: "DInterface",
    bar: bool,
    *,
    monitor: str = "val_loss",
    monitor_mode: Literal["min", "max"] | None = None,
    save_top_k: Annotated[int, ">= -1"] = 1,
    every_n_train_steps: Annotated[int, ">= 1"] | None = None,
    every_n_minutes: Annotated[float, ">= 0"] | None = None,
    patience: Annotated[int, ">= 0"] | None = None,
    bad_steps: Literal["stop", "skip", "ignore"] = "stop",
) -> list["Callback"]:
    """The callbacks of a run. Edit this list in place: an argument behind the `*` is a flag.

    monitor: metric that decides which checkpoint is best; torchmetrics knows whether lower or higher is better.
    monitor_mode: min if lower is better, max if higher, for a metric of your own.
    save_top_k: how many of the best checkpoints to keep; -1 keeps all.
    every_n_train_steps: save the last checkpoint every this many steps, besides after every epoch.
    every_n_minutes: save the last checkpoint every this many minutes, besides after every epoch.
    patience: stop after this many validations in a row in which the monitored metric has not improved.
    bad_steps: when a gradient is NaN or infinite: stop ends the run, skip leaves the step out and counts it, ignore
        does not check. With patience, a metric that is NaN stops the run too, or counts as no better.
    """
    from engine.checkpointing.checkpoint_callbacks import BestCheckpoint, LastCheckpoint
    from engine.checkpointing.monitor_mode import monitored
    from engine.logging.progress import EpochLines, ProgressBar
    from engine.training.early_stopping import EarlyStopping
    from engine.training.gradient_guard import GradientGuard

    metric = monitored(model, data, monitor, monitor_mode, required=patience is not None)
    callbacks: list[Callback] = [
        ProgressBar() if bar else EpochLines(),
        BestCheckpoint(run_dir / "checkpoints", metric, save_top_k),
        LastCheckpoint(run_dir, every_n_train_steps, every_n_minutes),
    ]
    if bad_steps != "ignore":
        callbacks.append(GradientGuard(run_dir, bad_steps))
    if patience is not None:
        callbacks.append(EarlyStopping(metric, patience, bad_steps))
    return callbacks


if __name__ == "__main__":
    sys.excepthook = print_own_frames
    main()
