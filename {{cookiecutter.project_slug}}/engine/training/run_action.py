"""The actions of main.py: fit, validate and test by Lightning's Trainer, all others by their file in commands/."""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from engine.checkpointing import run_folder, run_lock
from engine.checkpointing.atomic_write import WriteError
from engine.checkpointing.run_records import without_duplicates
from engine.cli import features_and_commands, parser
from engine.cli.settings import Settings
from engine.errors import UsageError, is_own_file, printable

Run = Callable[[Settings], dict[str, float]]


def run_wrapped(settings: Settings, run: Run) -> dict[str, float]:
    """Calls `run` through what wraps it: a temporary folder for --fast_dev_run, or the features' `fit` hooks.

    What only torch could find to be wrong with the command line ends the program here, with exit status 2.
    """
    is_dry = settings.arguments["trainer"].get("fast_dev_run")
    for wrap in features_and_commands.hooks("fit").values() if settings.action == "fit" and not is_dry else ():
        run = partial(wrap, run=run)
    try:
        if is_dry:
            return run_folder.dry_run(settings, run)
        metrics = run(settings)
        for finish in features_and_commands.hooks("finish").values():
            finish()
        return metrics
    except Exception as error:
        run_folder.remove_untrained()
        if isinstance(error, UsageError):
            parser.stop(str(error))
        if isinstance(error, WriteError):
            raise SystemExit(f"main.py: error: {error}") from None
        raise
    finally:
        run_lock.release()


def needs_trainer(action: str) -> bool:
    """Whether an action works on a Trainer, a network and data; a command that lists no `trainer` does not."""
    return "trainer" in features_and_commands.commands().get(action, ["trainer"])


def run_action(settings: Settings, context: dict[str, Any]) -> Any:
    """Runs the action; returns the metrics, or what a command returns.

    context: what a command may ask for by name beside settings and ckpt_path (NEEDS in features_and_commands.py).
    """
    path = str(settings.ckpt_path) if settings.ckpt_path else None
    context = context | {"settings": settings, "ckpt_path": path}
    with _in_one_line(settings, context.get("model"), context.get("data"), path):
        return _run(settings, context, path)


def _run(settings: Settings, context: dict[str, Any], path: str | None) -> Any:
    from pytorch_lightning.utilities.model_helpers import is_overridden  # once the command line is valid

    if settings.action in features_and_commands.commands():
        arguments = {name: context[name] for name in features_and_commands.commands()[settings.action]}
        return features_and_commands.load_command(settings.action)(**arguments, **settings.arguments["action"])
    trainer, model, data = (context[name] for name in ("trainer", "model", "data"))
    if settings.action == "fit":
        trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
        loaded = _loaded_metrics(trainer)
        if path and trainer.global_step == loaded["step"] and trainer.is_global_zero:
            later = "a later --max_epochs, --max_steps or --max_time, or a longer --patience, goes on"
            print(f"the run is finished, at step {trainer.global_step}: nothing is trained; {later}", flush=True)
        metrics = _latest_metrics(trainer) | {"epoch": trainer.fit_loop.epoch_progress.current.processed}
        return metrics | _measure_best(trainer, model, data)
    step = "validation_step" if settings.action == "validate" else "test_step"
    if not is_overridden(step, model):
        raise UsageError(f"{settings.action} calls {type(model).__name__}.{step}, which it does not have: write it")
    stage, evaluate = ("val", trainer.validate) if settings.action == "validate" else ("test", trainer.test)
    if not getattr(trainer, f"limit_{stage}_batches"):
        raise UsageError(f"there is nothing to {settings.action}: no {stage} split, or --limit_{stage}_batches 0")
    evaluate(model, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
    return _latest_metrics(trainer)


@contextmanager
def _in_one_line(settings: Settings, model: Any, data: Any, path: str | None) -> Iterator[None]:
    """Turns errors about weights that do not fit, missing gradients and Lightning's arguments into a line each.

    torch finds the first, after all hooks of the network, which may rename some; Lightning the second, such as
    --val_check_interval 100, once it has the data, where an epoch has 10 batches.
    """
    try:
        yield
    except RuntimeError as error:
        if path and f"in loading state_dict for {type(model).__name__}:" in str(error):
            from engine.checkpointing import checkpoint_io  # needs torch

            checkpoint_io.check_weights_fit(model, checkpoint_io.load(Path(path))["state_dict"])
        if type(error).__name__ == "OutOfMemoryError":
            ways = "--precision bf16-mixed, --activation_checkpointing, or a smaller --batch_size, which"
            error.add_note(f"{ways} --accumulate_grad_batches makes up for; `plan` tells which batch fits")
        from engine.training.training_check import NO_GRADIENT, explain_missing_gradient  # need torch

        if model is not None and NO_GRADIENT in str(error):
            explain_missing_gradient(error, model, data)
        raise
    except Exception as error:
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        if any(map(is_own_file, files)):  # the traceback says which line of the user's is meant
            raise
        said = " ".join(str(error).split())
        if settings.arguments["trainer"].get("overfit_batches"):  # which sets these
            said = re.sub(r"\blimit_(train|val|test)_batches\b", "overfit_batches", said)
        flags = [name for name in settings.arguments["trainer"] if re.search(rf"\b{name}\b", said)]
        if flags and "pytorch_lightning" in Path(files[-1]).parts:
            raise UsageError(f"--{flags[0]}: {said}") from error
        if type(error).__name__ == "MisconfigurationException":
            raise UsageError(f"Lightning: {said}") from error
        raise


def _latest_metrics(trainer: Any) -> dict[str, float]:
    """The latest value of all that is logged."""
    return without_duplicates({name: value.item() for name, value in trainer.callback_metrics.items()})


def _loaded_metrics(trainer: Any) -> dict[str, float]:
    """The metrics in the checkpoint that was loaded last."""
    from engine.training.metric_logging import MetricState

    return next(one for one in trainer.callbacks if isinstance(one, MetricState)).loaded


def _measure_best(trainer: Any, model: Any, data: Any) -> dict[str, float]:
    """Tests the best checkpoint, or the last weights where none was kept.

    Returns:
        The metrics of the test, and of the checkpoint, with its epoch, those of the split that it was chosen by:
        `best_epoch`, `best_val_loss` ...
    """
    from pytorch_lightning.utilities.model_helpers import is_overridden

    from engine.checkpointing import checkpoint_io
    from engine.training.metric_logging import metrics_of

    callback = trainer.checkpoint_callback
    path = getattr(callback, "best_model_path", "")
    if not path and getattr(callback, "save_top_k", False) and not trainer.fast_dev_run and trainer.is_global_zero:
        why = f"{callback.monitor} had no value, or NaN"
        print(f"no checkpoint is the best: {why}; what follows is of the last weights")
    path = path if path and Path(path).exists() else None
    has_test = data.set_names("test") and is_overridden("test_step", model)
    if has_test:
        trainer.test(model, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
    measured = _latest_metrics(trainer) if has_test else {}
    if not path:
        return measured
    best = without_duplicates(_loaded_metrics(trainer) if has_test else metrics_of(checkpoint_io.load(Path(path))))
    split = re.split("[_/]", callback.monitor)[0]
    chosen = {name: value for name, value in best.items() if name == "epoch" or re.match(f"{split}[_/]", name)}
    return measured | {f"best_{name}": value for name, value in chosen.items()}


def print_start(settings: Settings, trainer: Any, run_dir: Path, hardware: list[str]) -> None:
    """Prints the first line of a run: action, network, dataset, checkpoint, run folder, device and what is on."""
    if trainer.is_global_zero:
        names = settings.arguments["run"]
        source = settings.ckpt_path or names["init_from"]
        on = ", ".join([trainer.strategy.root_device.type, *hardware])
        what = f"{settings.action} {names['model_name']} on {names['dataset']}"
        what += f", from {printable(str(source))}" if source else ""
        print(f"{what}: {run_dir} ({on})", flush=True)
