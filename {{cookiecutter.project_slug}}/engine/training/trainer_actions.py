"""The actions of main.py: fit, validate and test by Lightning's Trainer, all others by their file in commands/."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine.checkpointing import run_folder
from engine.cli import features_and_commands
from engine.cli.settings import Settings
from engine.errors import printable

Run = Callable[[Settings], dict[str, float]]


def run_wrapped(settings: Settings, run: Run) -> dict[str, float]:
    """Calls `run` through what wraps it: a temporary folder for --fast_dev_run, or the features' `fit` hooks."""
    if settings.arguments["trainer"].get("fast_dev_run"):
        return run_folder.dry_run(settings, run)
    for wrap in features_and_commands.hooks("fit").values() if settings.action == "fit" else ():
        run = partial(wrap, run=run)
    try:
        metrics = run(settings)
    except Exception:
        run_folder.remove_untrained()
        raise
    for finish in features_and_commands.hooks("finish").values():
        finish()
    return metrics


def needs_trainer(action: str) -> bool:
    """Whether an action works on a Trainer, a network and data; a command that lists no `trainer` does not."""
    return "trainer" in features_and_commands.commands().get(action, ["trainer"])


def run_action(settings: Settings, context: dict[str, Any]) -> Any:
    """Runs the action; fit, validate and test return the metrics.

    context: what a command may take besides the settings and the checkpoint, by name (`NEEDS` of engine.cli.plugins).
    """
    path = str(settings.ckpt_path) if settings.ckpt_path else None
    context = context | {"settings": settings, "ckpt_path": path}
    if settings.action in features_and_commands.commands():
        arguments = {name: context[name] for name in features_and_commands.commands()[settings.action]}
        return features_and_commands.load_command(settings.action)(**arguments, **settings.arguments["action"])
    trainer, model, data = (context[name] for name in ("trainer", "model", "data"))
    if settings.action == "fit":
        trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
        if path and trainer.global_step == model.loaded_metrics["step"] and trainer.is_global_zero:
            later = "a later --max_epochs, --max_steps or --max_time, or a longer --patience, goes on"
            print(f"the run is finished, at step {trainer.global_step}: nothing is trained; {later}", flush=True)
        model.latest_metrics |= {"epoch": trainer.fit_loop.epoch_progress.current.processed} | _measure_best(
            trainer, model, data
        )
    else:
        evaluate = trainer.validate if settings.action == "validate" else trainer.test
        evaluate(model, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
    return model.latest_metrics


def _measure_best(trainer: Any, model: Any, data: Any) -> dict[str, float]:
    """Tests the best checkpoint, or the last weights where none was kept.

    Returns:
        The checkpoint's epoch and the metrics of the split that it was chosen by: `best_epoch`, `best_val_loss` ...
    """
    from engine.checkpointing import checkpoint_io
    from engine.training.metric_logging import metrics_of

    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    path = path if path and Path(path).exists() else None
    if data.split("test") is not None:
        trainer.test(model, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
    if not path:
        return {}
    best = model.loaded_metrics if data.split("test") is not None else metrics_of(checkpoint_io.load(Path(path)))
    split = trainer.checkpoint_callback.monitor.partition("_")[0]
    return {f"best_{name}": value for name, value in best.items() if name == "epoch" or name.startswith(f"{split}_")}


def print_start(settings: Settings, trainer: Any, run_dir: Path, hardware: list[str]) -> None:
    """Prints the first line of a run: action, network, dataset, checkpoint, run folder, device and what is on."""
    if trainer.is_global_zero:
        source = f", from {printable(str(settings.ckpt_path))}" if settings.ckpt_path else ""
        on = ", ".join([trainer.strategy.root_device.type, *hardware])
        names = settings.arguments["run"]
        what = f"{settings.action} {names['model_name']} on {names['dataset']}"
        print(f"{what}{source}: {run_dir} ({on})", flush=True)
