#!/usr/bin/env python
# PYTHON_ARGCOMPLETE_OK
"""The door: flags -> data, network, callbacks, loggers -> Trainer. `python main.py --help` says the rest."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine import config, discovery, flags, runs
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
    settings = flags.parse(sys.argv[1:] if argv is None else argv, SEEDS)

    def once(settings: flags.Settings) -> dict[str, float]:
        return run(settings, callbacks, **settings.arguments["run"])

    try:
        if settings.arguments["trainer"].get("fast_dev_run"):
            return rehearse(settings, once)
        if settings.action == "fit" and settings.arguments.get("folds", {}).get("num_folds"):
            return import_module("engine.folds").train(settings, once)
        return once(settings)
    except UsageError as error:  # found only with torch at hand
        flags.stop(str(error))


def rehearse(settings: flags.Settings, run: Callable[[flags.Settings], dict[str, float]]) -> dict[str, float]:
    """`--fast_dev_run`: a few batches in a folder that goes again, so that no run is begun or written over."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        elsewhere = settings.arguments["run"] | {"default_root_dir": folder}
        metrics = run(settings._replace(arguments=settings.arguments | {"run": elsewhere}))
    print("--fast_dev_run: it works, and nothing of it was kept")
    return metrics


def run(
    settings: flags.Settings,
    own_callbacks: "Sequence[Callback]" = (),
    *,
    model_name: str,
    dataset: str,
    ckpt_path: str | None = None,
    init_from: str | None = None,
    init_partial: bool = False,
    seed: int = 0,
    seed_index: int | None = None,
    max_epochs: int | None = None,
    log_every_n_steps: int = 20,
    enable_progress_bar: bool = sys.stdout.isatty(),
    default_root_dir: str = ".",
    num_threads: int | None = None,
    channels_last: bool = True,
    keep_memory: bool = True,
    matmul_precision: Literal["highest", "high", "medium"] = "high",
    hang_minutes: float = 10.0,
) -> dict[str, float]:
    """Wires everything together and does the action. The arguments behind the `*` are flags.

    Args:
        model_name: a file of model/, or a dotted path to a class.
        dataset: a file of data/, or a dotted path to a class.
        ckpt_path: last, best, version_N, a run folder or a file, to go on from or to measure.
        init_from: the same, or a file of weights, which a new run begins with.
        init_partial: take only those weights of init_from whose name and shape fit.
        seed: the first weights, the cut into parts, the order of the items and every random draw follow from it.
        seed_index: the seed by its place in the list SEEDS of main.py, from 1: for repeats that others can repeat.
        max_epochs: epochs to train, -1 for no end; none means 10, or no end where max_steps or max_time is given.
        log_every_n_steps: optimiser steps between two points of train_loss_step.
        enable_progress_bar: a bar, as on a terminal; otherwise a line an epoch.
        default_root_dir: folder in which lightning_logs lies.
        num_threads: CPU threads of torch; none leaves it to torch.
        channels_last: lay images out with the channels last, which convolutions are quicker on, where a network can.
        keep_memory: let malloc keep what a step frees for the next one (Linux).
        matmul_precision: of float32 products on a GPU: high is TF32, highest is exact.
        hang_minutes: after so long without a batch every process says where it stands; those that wait for one give up.
    """
    import logging
    import warnings

    from pytorch_lightning import Trainer, seed_everything
    from pytorch_lightning.utilities import rank_zero_only
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from engine import checkpoints, loggers, machine, watchdog

    for name in ("pytorch_lightning", "lightning_fabric"):  # advertisements, and what the start line says too
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated", module="pytorch_lightning")  # Lightning's own call
    warnings.filterwarnings("ignore", ".*exists and is not empty")  # so it is when a run goes on
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval")  # its means are logged all the same
    if settings.action == "fit":
        loggers.check(**settings.arguments["loggers"])
    seed_everything(seed, verbose=False)
    data = load_data(settings)
    model = load_model(settings, data)
    if init_from and not settings.ckpt_path:  # a run that goes on has its own weights
        checkpoints.init_weights(model, Path(init_from), init_partial)
    fast = machine.prepare(model, data, num_threads, channels_last, keep_memory, matmul_precision)
    monitor = settings.arguments["callbacks"].get("monitor", "val_loss")
    if type(model).__name__ == "MInterface" and monitor not in model.metrics:  # a system logs what it likes
        raise UsageError(f"--monitor {monitor}: there is no such metric; there are: {', '.join(model.metrics)}")
    given = dict(settings.arguments["trainer"])
    folder = runs.run_of(settings.ckpt_path) if settings.ckpt_path and not given.get("fast_dev_run") else None
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # the others write nothing
        own = settings.arguments.get("action", {})  # what only this action asks is no setting of a run
        kept = {name: value for name, value in settings.flags.items() if name not in own}
        config_file = config.dump(kept) if settings.action in ("fit", "tune") else None
        folder = runs.open_folder(folder, runs.folder(default_root_dir), config_file)
    folder = folder or runs.folder(default_root_dir)
    given["profiler"] = machine.profiler(given.get("profiler"), folder)
    if data.part("val") is None:
        given["limit_val_batches"] = 0
    if max_epochs is None:
        max_epochs = -1 if {"max_steps", "max_time"} & given.keys() else 10
    features = [
        one
        for name in discovery.features()
        for one in import_module(f"engine.{name}").callbacks(folder, model, data, **settings.arguments[name])
    ]
    features += own_callbacks
    make_trainer = partial(
        Trainer,
        **given,
        max_epochs=max_epochs,
        log_every_n_steps=log_every_n_steps,
        enable_progress_bar=enable_progress_bar,
        callbacks=load_callbacks(folder, data, seed, enable_progress_bar, **settings.arguments["callbacks"]) + features,
        logger=load_loggers(folder, **settings.arguments["loggers"]) if settings.action == "fit" else [],
        plugins=[checkpoints.DurableCheckpointIO()],
        enable_model_summary=False,  # engine/summary.py has one line instead
        use_distributed_sampler=False,  # the loaders of DInterface know their rank
    )
    try:
        trainer = make_trainer()
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UsageError(f"Lightning's Trainer: {str(error).splitlines()[0]}") from error
    machine.hush_ranks(trainer)
    if trainer.is_global_zero:
        source = f", from {settings.ckpt_path}" if settings.ckpt_path else ""
        how = ", ".join([trainer.strategy.root_device.type, *fast])
        print(f"{settings.action} {model_name} on {dataset}{source}: {folder} ({how})", flush=True)
    with watchdog.watch(trainer, hang_minutes):
        metrics = act(settings, trainer, model, data, folder)
    if metrics and trainer.is_global_zero:
        report(metrics, folder)
    return metrics


def act(
    settings: flags.Settings, trainer: "Trainer", model: "MInterface", data: "DInterface", folder: Path
) -> dict[str, float]:
    """Does the action and returns what it measured."""
    path = str(settings.ckpt_path) if settings.ckpt_path else None
    how: dict[str, Any] = {"datamodule": data, "weights_only": True}
    if settings.action == "fit":
        trainer.fit(model, **how, ckpt_path=path)
        if data.part("test") is not None:
            best = Path(getattr(trainer.checkpoint_callback, "best_model_path", ""))
            trained = model.latest
            trainer.test(model, **how, ckpt_path=str(best) if best.is_file() else None, verbose=False)
            model.latest = trained | model.latest
    elif settings.action in ("validate", "test"):
        measure = trainer.validate if settings.action == "validate" else trainer.test
        measure(model, **how, ckpt_path=path, verbose=False)
    else:
        action = import_module(f"engine.{settings.action}")
        action.run(trainer, model, data, path, folder, **settings.arguments["action"])
    return model.latest


def report(metrics: dict[str, float], folder: Path) -> None:
    """Prints a table and keeps it as metrics.json in the run folder, beside what stood there."""
    import json

    path = folder / "metrics.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(before | metrics, indent=2) + "\n", encoding="utf-8")
    print("\n".join(f"{name:<12} {value:.4f}" for name, value in metrics.items()) + f"\n{folder}")


def load_data(settings: flags.Settings) -> "DInterface":
    """The data, not read yet."""
    from data import DInterface

    folds = settings.arguments.get("folds")
    cut = import_module("engine.folds").cutter(**folds) if folds else None
    return DInterface(settings.dataset.load(), settings.arguments["dataset"], cut, **settings.arguments["data"])


def load_model(settings: flags.Settings, data: "DInterface") -> "MInterface":
    """The network in its interface, with what the data knows (`num_classes` ...) filled in."""
    import inspect

    from model import MInterface

    arguments = dict(settings.arguments["network"])
    for name in settings.asks:
        known = data.knows(name)
        given = arguments.setdefault(name, known)
        if given is None:
            raise UsageError(f"{settings.network.name} needs --{name}: {settings.dataset.name} does not know it")
        if known is not None and known != given:
            raise UsageError(f"--{name} {given}: {settings.dataset.name} says that it is {known}")
    options = {key: settings.arguments[key] for key in ("loss", "optimizer", "schedule")} | {"data": data.facts()}
    network = settings.network.load()
    if isinstance(network, type) and issubclass(network, MInterface):
        takes = inspect.signature(network).parameters.values()
        own = any(one.kind is one.VAR_KEYWORD or one.name == "options" for one in takes)  # it hands them on
        model = network(**settings.arguments["system"] | arguments | ({"options": options} if own else {}))
    else:
        model = MInterface(network(**arguments), **settings.arguments["system"] | {"options": options})
    model.save_hyperparameters(settings.flags)
    return model


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
    ema_decay: float | None = None,
) -> list["Callback"]:
    """Edit this list in place: an argument behind the `*` is a flag.

    Args:
        monitor: the metric that says which checkpoint is best (more is better for acc and the like).
        save_top_k: how many of the best checkpoints to keep.
        every_n_train_steps: save the last checkpoint every so many steps too; it is saved after every epoch.
        every_n_minutes: the same by the clock.
        patience: stop when the monitored metric has not got better for so many validations.
        bad_steps: what to do before a step whose gradient is NaN or infinite; on a GPU, ignore spares a wait a step.
        ema_decay: validate, keep and test an exponential moving average of the weights, such as 0.999.
    """
    from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging

    from engine.callbacks import EpochLines, ProgressBar, Reseed
    from engine.checkpoints import BestCheckpoint, LastCheckpoint
    from engine.guard import Guard

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
    if ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=ema_decay))
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
