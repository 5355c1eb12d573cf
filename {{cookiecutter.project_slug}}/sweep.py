#!/usr/bin/env python
"""Searches flags by optuna: python sweep.py space.yaml --trials 20 --metric val_loss -- --model_name my_net ...

The space is a YAML file, a line a flag: a range, `lr: {low: 1e-4, high: 1e-1, log: true}`; a range of whole numbers,
`num_layers: {low: 1, high: 4}` (`step: 2` is possible too); or a list of choices, `hidden_dim: [16, 32, 64]`.
Behind `--` stand the flags that stay the same. Every trial is a run folder. The same command continues its study until
it has so many trials; several processes with the same storage share them.
"""

import argparse
import itertools
import math
import shlex
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

import main as project
from engine.checkpointing.monitor_mode import known_mode, mode_of
from engine.cli import discovery
from engine.errors import UsageError, print_own_frames
from engine.logging import figures

Space = dict[str, dict[str, Any]]  # flag -> {"choices": [...]} or {"low", "high", "log", "step"}


def main(argv: list[str] | None = None) -> tuple[float, dict[str, Any]]:
    """Runs the trials and returns the best value with the flags that gave it; SystemExit(2) on a mistake."""
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser("sweep.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("space", type=Path, help="YAML file of the flags to search")
    parser.add_argument("--trials", type=int, default=20, help="number of finished trials in the study (default: 20)")
    parser.add_argument("--metric", default="val_loss", help="metric to optimize (default: val_loss)")
    parser.add_argument("--storage", default="sqlite:///sweep.db", help="database (default: sqlite:///sweep.db)")
    parser.add_argument("--study", help="name of the study (default: that of the space file)")
    parser.add_argument("--seed", type=int, help="of the sampler; a single process then repeats a search")
    parser.add_argument("--heartbeat", type=int, default=60, help="seconds; a trial that misses two is repeated")
    on_off = argparse.BooleanOptionalAction
    parser.add_argument("--prune", action=on_off, default=True, help="end hopeless trials early")
    options, fixed = parser.parse_args(argv[:end]), argv[end + 1 :]
    try:
        space = read_space(options.space)
        example = {flag: entry["choices"][0] if "choices" in entry else entry["low"] for flag, entry in space.items()}
        settings = project.parse(fixed + as_flags(example))  # exits here if a flag is wrong
        if settings.flags["run_name"]:
            raise UsageError("--run_name: each trial is a run of its own; --tags marks all of them")
        is_monitor = options.metric.removeprefix("best_") == settings.flags["monitor"]
        given = settings.flags["monitor_mode"] if is_monitor else None
        return search(space, fixed, options, mode_of(options.metric, given or own_mode(options.metric, settings)))
    except (SystemExit, KeyboardInterrupt) as exit:
        code = getattr(exit, "code", 130)
        if isinstance(code, int) and code > 128:  # a signal: the trial's own command is not the sweep's
            print(f"the sweep goes on with:\n{shlex.join(['python', 'sweep.py', *argv])}", flush=True)
        raise
    except UsageError as error:
        print(f"sweep.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def own_mode(metric: str, settings: Any) -> Literal["min", "max"] | None:
    """The direction of a metric by the class that --metrics names; None where none does, or does not say."""
    from engine.training import metrics  # imports torch

    logged = metrics.logged_names(settings.flags.get("metrics") or ())
    fitting = [text for text in logged if metric.endswith(f"_{logged[text]}")]
    named = max(fitting, key=lambda text: len(logged[text]), default="")
    name = named.partition("(")[0]
    if named and not metrics.is_own(named):  # with its arguments in the name, perhaps
        return known_mode(f"val_{name.lower()}")
    return known_mode(metric, {metric: discovery.find("model", name).load()} if named else {})


def read_space(path: Path) -> Space:
    """The search space in a YAML file; numbers may be written as 1e-4.

    Raises: UsageError: there is no such file, or a line is neither a list of choices nor a range.
    """
    import yaml

    try:
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(lines, dict) or not lines:
        raise UsageError(f"{path} should hold lines like `lr: {{low: 1e-4, high: 1e-1, log: true}}`")
    return {str(flag): _entry(value, f"{path}: {flag}") for flag, value in lines.items()}


def _entry(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, list) and value:
        return {"choices": [str(one) if isinstance(one, (list, dict)) else one for one in value]}
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= {"low", "high", "log", "step"}:
        raise UsageError(f"{where} should be a list of choices or {{low, high}} with log or step: not {value}")
    log = bool(value.get("log"))
    try:  # YAML takes 1e-4 for text
        limits = {key: float(one) if isinstance(one, str) else one for key, one in value.items() if key != "log"}
        if not limits["low"] <= limits["high"] or (log and (limits["low"] <= 0 or "step" in limits)):
            raise ValueError
    except (TypeError, ValueError):
        raise UsageError(f"{where}: {value} is no range (low <= high; above 0 and without step for log)") from None
    return limits | {"log": log}


def as_flags(values: dict[str, Any]) -> list[str]:
    """Values as arguments of a command line."""
    texts = {flag: str(value).lower() if isinstance(value, bool | None) else value for flag, value in values.items()}
    return [f"--{flag}={text}" for flag, text in texts.items()]


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """The values of a trial, drawn by optuna."""
    values = {}
    for flag, entry in space.items():
        if "choices" in entry:
            values[flag] = trial.suggest_categorical(flag, **entry)
        elif isinstance(entry["low"], int) and isinstance(entry["high"], int):
            values[flag] = trial.suggest_int(flag, **entry)
        else:
            values[flag] = trial.suggest_float(flag, **entry)
    return values


def search(
    space: Space, fixed: list[str], options: argparse.Namespace, mode: Literal["min", "max"]
) -> tuple[float, dict[str, Any]]:
    """Runs trials until so many are finished, then prints and draws the result. mode: which of the values is best."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise UsageError('sweep.py needs optuna: pip install -e ".[sweep]"') from None
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # of the heartbeat
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(options.storage, options.heartbeat)
    study = optuna.create_study(
        study_name=options.study or options.space.stem,
        storage=storage,
        direction="maximize" if mode == "max" else "minimize",
        pruner=optuna.pruners.MedianPruner() if options.prune else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    if options.seed is not None:  # a continued study should draw other values than before
        study.sampler = optuna.samplers.TPESampler(seed=options.seed + len(study.trials))
    try:
        if study.user_attrs.get("metric", options.metric) != options.metric:
            raise UsageError(f"study {study.study_name} optimizes {study.user_attrs['metric']}: give another --study")
        study.set_user_attr("metric", options.metric)
        objective = partial(run_trial, study, space, fixed, options.metric)
        run_trials(study, objective, options.trials, min(options.heartbeat, 5))
        if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            raise UsageError("no trial ended with a finite value: try lower learning rates, for example")
        best, local = study.best_trial, options.storage.startswith("sqlite:///")
        path = Path(options.storage.removeprefix("sqlite:///") if local else ".").parent / f"{study.study_name}.png"
        draw(study, options.metric, path)
        print(f"best {options.metric}: {best.value:.6g} (trial {best.number} of {len(study.trials)}); {path}")
        print(shlex.join(["python", "main.py", *fixed, *as_flags(best.params)]))
        return study.best_value, best.params
    finally:
        storage.remove_session()
        storage.engine.dispose()


def open_storage(url: str, heartbeat: int, retries: int = 5) -> Any:
    """The database. If two processes create it at the same moment, the second tries again."""
    import optuna
    from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

    try:
        return optuna.storages.RDBStorage(
            url,
            heartbeat_interval=heartbeat,
            grace_period=2 * heartbeat,
            heartbeat_stale_trial_callback=lambda study, trial: study.enqueue_trial(trial.params),
        )
    except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError) as error:
        if retries and isinstance(error.__cause__ or error, (IntegrityError, OperationalError)):
            time.sleep(0.5)
            return open_storage(url, heartbeat, retries - 1)
        raise UsageError(f"--storage {url}: {str(error).splitlines()[0]}") from None


def run_trials(study: Any, objective: Any, num_trials: int, pause: float) -> None:
    """Runs one trial after the other until the study has `num_trials` finished ones, by this or other processes.

    A trial whose heartbeat stopped was killed: it is marked as failed, and its values are tried again. pause: seconds
    between two checks while other processes run the missing trials.
    """
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.storages import fail_stale_trials

    while True:
        fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        finished = sum(trial.state.name in ("COMPLETE", "PRUNED") or "failed" in trial.user_attrs for trial in trials)
        if finished >= num_trials:
            return
        if finished + sum(trial.state.name == "RUNNING" for trial in trials) < num_trials:
            try:
                study.optimize(objective, n_trials=1, catch=(FloatingPointError,))
            except (ValueError, UpdateFinishedTrialError) as error:
                if isinstance(error, ValueError) and "Cannot tell a FAIL trial" not in str(error):
                    raise
                print("this process stood still for so long that its trial is repeated, by another or by itself")
        else:
            time.sleep(pause)


def run_trial(study: Any, space: Space, fixed: list[str], metric: str, trial: Any) -> float:
    """A run with the values of a trial: the metric at its end.

    Raises: FloatingPointError: the metric is not finite; the trial counts, and the search continues.
    """
    import optuna
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import LambdaCallback

    try:
        values = suggest(trial, space)
    except ValueError as error:
        raise UsageError(f"study {study.study_name} has another space ({error}): give another --study") from None
    counter = itertools.count()

    def report(trainer: Trainer, module: Any) -> None:
        if trainer.world_size > 1:
            raise UsageError("sweep.py runs each trial in one process: --devices 1; start it several times instead")
        value = trainer.callback_metrics.get(metric)
        if value is not None and not trainer.sanity_checking:
            trial.report(value.item(), next(counter))
            if trial.should_prune():
                raise optuna.TrialPruned

    print(f"\ntrial {trial.number}: {' '.join(as_flags(values))}", flush=True)
    try:
        metrics = project.main(fixed + as_flags(values), [LambdaCallback(on_validation_end=report)])
        if metric not in metrics:
            raise UsageError(f"--metric {metric}: a run has {', '.join(metrics)}")
        if not math.isfinite(metrics[metric]):
            raise FloatingPointError(f"{metric} is {metrics[metric]}")
    except FloatingPointError as error:
        trial.set_user_attr("failed", str(error))
        raise
    except SystemExit as exit:
        study.tell(trial, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
        if exit.code != 2:  # a signal, not a wrong flag
            study.enqueue_trial(trial.params)
        raise
    return metrics[metric]


def draw(study: Any, metric: str, path: Path) -> None:
    """The metric of the finished trials over each flag; the later a trial, the darker its point."""
    import matplotlib
    from optuna.visualization.matplotlib import plot_slice

    matplotlib.use("Agg")  # a file and no window
    warnings.filterwarnings("ignore", "Attempting to set identical low and high xlims")  # a flag with a single value
    # It gives one panel, or as many as there are flags.
    figures.write_png(path, figures.render(lambda: np.asarray(plot_slice(study, target_name=metric)).flat[0].figure))


if __name__ == "__main__":
    sys.excepthook = print_own_frames
    main()
