#!/usr/bin/env python
# PYTHON_ARGCOMPLETE_OK
"""The door: flags -> data, network, callbacks, loggers -> Trainer. `python main.py --help` says the rest."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine import discovery, flags, jobs, runs
from engine.discovery import UsageError

if TYPE_CHECKING:  # torch waits until the command line has been found right
    from pytorch_lightning import Callback, Trainer
    from pytorch_lightning.loggers import Logger

    from data import DInterface
    from model import MInterface


SEEDS = (1, 17, 42, 101, 271, 828, 1234, 1828, 2718, 31415)  # --seed_index 1 to 10: the same in every report


def main(argv: list[str] | None = None, callbacks: "Sequence[Callback]" = ()) -> dict[str, float]:
    """Runs a command line (by default the program's own) and returns its metrics; SystemExit(2) on a mistake.

    callbacks: further ones, of a program that calls this.
    """
    jobs.listen()
    settings = flags.parse(sys.argv[1:] if argv is None else argv, SEEDS)

    def once(settings: flags.Settings) -> dict[str, float]:
        if discovery.defines(settings.action, "run", "settings"):  # it needs flags but no Trainer
            return import_module(f"engine.{settings.action}").run(settings, **settings.arguments["action"])
        return run(settings, callbacks, **settings.arguments["run"])

    try:
        if settings.arguments["trainer"].get("fast_dev_run"):
            return runs.rehearse(settings, once)
        folds = settings.action == "fit" and settings.arguments.get("folds", {}).get("num_folds")
        metrics = import_module("engine.folds").train(settings, once) if folds else once(settings)
        discovery.end()
        return metrics
    except UsageError as error:  # found only with torch at hand
        flags.stop(str(error))


def run(
    settings: flags.Settings,
    own_callbacks: "Sequence[Callback]" = (),
    *,
    model_name: str,
    dataset: str,
    ckpt_path: str | None = None,
    init_from: str | None = None,
    init_partial: bool = False,
    trust: bool = False,
    seed: int = 0,
    seed_index: int | None = None,
    max_epochs: int | None = None,
    log_every_n_steps: int = 20,
    enable_progress_bar: bool = sys.stdout.isatty(),
    default_root_dir: str = ".",
    hang_minutes: float = 10.0,
) -> dict[str, float]:
    """Wires everything together and does the action. The arguments behind the `*` are flags.

    Args:
        model_name: a file of model/, or a dotted path to a class.
        dataset: a file of data/, or a dotted path to a class.
        ckpt_path: last, best, version_N, a run folder, a file or an address, to go on from or to measure.
        init_from: the same, or a file of weights, which a new run begins with.
        init_partial: take only those weights of init_from whose name and shape fit.
        trust: import what the checkpoint names (network, dataset, loss, optimizer) wherever it lies; it may run code.
        seed: the first weights, the cut into parts, the order of the items and every random draw follow from it.
        seed_index: the seed by its place in the list SEEDS of main.py, from 1: for repeats that others can repeat.
        max_epochs: epochs to train, -1 for no end; none means 10, or no end where max_steps or max_time is given.
        log_every_n_steps: optimiser steps between two points of train_loss_step.
        enable_progress_bar: a bar, as on a terminal; otherwise a line an epoch.
        default_root_dir: folder in which lightning_logs lies.
        hang_minutes: after so long without a batch every process says where it stands; those that wait for one give up.
    """
    from pytorch_lightning import seed_everything

    from data import DInterface
    from engine import checkpoints, loggers, machine, watchdog
    from model import MInterface

    machine.hush()
    given, fits = jobs.places() | settings.arguments["trainer"], settings.action == "fit"
    if fits:
        loggers.check(**settings.arguments["loggers"])
    seed_everything(seed, verbose=False)
    data = DInterface.of(settings)
    model = MInterface.of(settings, data)
    if init_from and not settings.ckpt_path:  # a run that goes on has its own weights
        checkpoints.init_weights(model, Path(init_from), init_partial)
    fast = machine.prepare(model, data, given.get("strategy"), **settings.arguments["machine"])
    folder = runs.of(settings, default_root_dir)
    given["profiler"] = machine.profiler(given.get("profiler"), folder)
    if data.part("val") is None:
        given["limit_val_batches"] = 0
    if max_epochs is None:
        max_epochs = -1 if {"max_steps", "max_time"} & given.keys() else 10
    callbacks = load_callbacks(folder, data, seed, enable_progress_bar, **settings.arguments["callbacks"])
    for name in discovery.features():
        callbacks += import_module(f"engine.{name}").callbacks(folder, model, data, **settings.arguments[name])
    trainer = machine.trainer(
        model,
        **given,
        max_epochs=max_epochs,
        log_every_n_steps=log_every_n_steps,
        enable_progress_bar=enable_progress_bar,
        callbacks=[*callbacks, *own_callbacks],
        logger=load_loggers(folder, **settings.arguments["loggers"]) if fits else [],
        plugins=[checkpoints.DurableCheckpointIO(), *machine.cluster()],
        enable_model_summary=False,  # engine/summary.py has one line instead
        use_distributed_sampler=False,  # the loaders of DInterface know their rank
    )
    if trainer.is_global_zero:
        source = f", from {settings.ckpt_path}" if settings.ckpt_path else ""
        how = ", ".join([trainer.strategy.root_device.type, *fast])
        print(f"{settings.action} {model_name} on {dataset}{source}: {folder} ({how})", flush=True)
    with watchdog.watch(trainer, hang_minutes):
        act(settings, trainer, model, data, folder)
    if trainer.is_global_zero:
        runs.end(folder, settings.mark, model.latest)
    return model.latest


def act(settings: flags.Settings, trainer: "Trainer", model: "MInterface", data: "DInterface", folder: Path) -> None:
    """Does the action; what it measures is in `model.latest`."""
    path = str(settings.ckpt_path) if settings.ckpt_path else None
    how: dict[str, Any] = {"datamodule": data, "weights_only": True}
    if settings.action == "fit":
        trainer.fit(model, **how, ckpt_path=path)
        if data.part("test") is not None:
            best = getattr(trainer.checkpoint_callback, "best_model_path", "")
            trained = model.latest
            trainer.test(model, **how, ckpt_path=best if best and Path(best).exists() else None, verbose=False)
            model.latest = trained | model.latest
    elif settings.action in ("validate", "test"):
        measure = trainer.validate if settings.action == "validate" else trainer.test
        measure(model, **how, ckpt_path=path, verbose=False)
    else:
        action = import_module(f"engine.{settings.action}")
        action.run(trainer, model, data, path, folder, **settings.arguments["action"])


def load_callbacks(
    folder: Path,
    data: "DInterface",
    seed: int,
    bar: bool,
    *,
    monitor: str = "val_loss",
    save_top_k: int = 1,
    every_n_train_steps: int | None = None,
    every_n_minutes: float | None = None,
    patience: int | None = None,
    bad_steps: Literal["stop", "skip", "ignore"] = "stop",
) -> list["Callback"]:
    """Edit this list in place: an argument behind the `*` is a flag.

    Args:
        monitor: the metric that says which checkpoint is best (more is better for acc and the like).
        save_top_k: how many of the best checkpoints to keep.
        every_n_train_steps: save the last checkpoint every so many steps too; it is saved after every epoch.
        every_n_minutes: the same by the clock.
        patience: stop when the monitored metric has not got better for so many validations.
        bad_steps: what to do before a step whose gradient is NaN or infinite; on a GPU, ignore spares a wait a step.
    """
    from pytorch_lightning.callbacks import EarlyStopping

    from engine.callbacks import EpochLines, ProgressBar, Reseed
    from engine.guard import Guard
    from engine.saving import BestCheckpoint, LastCheckpoint

    if data.part("val") is None:
        monitor = monitor.replace("val_", "train_", 1)
    when: dict[str, Any] = {"save_on_train_epoch_end": monitor.startswith("train_"), "enable_version_counter": False}
    mode, to = runs.direction(monitor), folder / "checkpoints"
    named = "best-{epoch}-{" + monitor + ":.6f}"
    callbacks: list[Callback] = [
        Reseed(seed),
        ProgressBar() if bar else EpochLines(),
        BestCheckpoint(to, named, monitor, mode=mode, save_top_k=save_top_k, **when),
        LastCheckpoint(folder, every_n_train_steps, every_n_minutes),
    ]
    if bad_steps != "ignore":
        callbacks.append(Guard(folder, bad_steps))
    if patience is not None:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=patience))
    return callbacks


def load_loggers(
    folder: Path, *, logger: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = ("tensorboard", "csv")
) -> list["Logger"]:
    """The loggers, all in one run folder.

    Args:
        logger: where the metrics go, any of them together; [] for nowhere.
    """
    from engine import loggers

    return loggers.load(folder, logger)


if __name__ == "__main__":
    main()
