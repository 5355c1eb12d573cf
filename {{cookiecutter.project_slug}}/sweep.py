#!/usr/bin/env python
"""Searches flags by optuna: python sweep.py space.yaml --trials 20 --metric val_loss -- --model_name my_net ...

The space is a YAML file, a line a flag: a range, `lr: {low: 1e-4, high: 1e-1, log: true}`; a range of whole numbers,
`num_layers: {low: 1, high: 4}` (`step: 2` is possible too); or a list of choices, `hidden_dim: [16, 32, 64]`.
Behind `--` stand the flags that stay the same. Every trial is a run folder. The same command goes on with its study up
to so many trials; several at once, on one storage, share them.
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
from typing import Any

import main as project
from engine.checkpointing.find import monitor_mode
from engine.errors import UsageError
from engine.space import Space, drawn, first, read, said


def main(argv: list[str] | None = None) -> tuple[float, dict[str, Any]]:
    """Goes through the trials and returns the best value with the flags that gave it; SystemExit(2) on a mistake."""
    words = sys.argv[1:] if argv is None else argv
    own, fixed = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser("sweep.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("space", type=Path, help="YAML file of the flags to search")
    parser.add_argument("--trials", type=int, default=20, help="finished trials to come to (default: 20)")
    parser.add_argument("--metric", default="val_loss", help="what should be best at a run's end (default: val_loss)")
    parser.add_argument("--storage", default="sqlite:///sweep.db", help="database (default: sqlite:///sweep.db)")
    parser.add_argument("--study", help="its name there (default: the name of the space file)")
    parser.add_argument("--seed", type=int, help="of the search; with one process it repeats a search")
    parser.add_argument("--heartbeat", type=int, default=60, help="seconds; a trial silent for two is repeated")
    parser.add_argument(
        "--prune", action=argparse.BooleanOptionalAction, default=True, help="end hopeless trials early"
    )
    chosen = parser.parse_args(own)
    try:
        space = read(chosen.space)
        project.parse(fixed + said({name: first(one) for name, one in space.items()}))  # its own mistakes
        return search(space, fixed, chosen)
    except UsageError as error:
        print(f"sweep.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def search(space: Space, fixed: list[str], chosen: argparse.Namespace) -> tuple[float, dict[str, Any]]:
    """Runs trials until so many are finished, then prints and draws what was found."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise UsageError('sweep.py needs optuna: pip install -e ".[sweep]"') from None
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # of the heartbeat
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(chosen.storage, chosen.heartbeat)
    study = optuna.create_study(
        study_name=chosen.study or chosen.space.stem,
        storage=storage,
        direction="maximize" if monitor_mode(chosen.metric) == "max" else "minimize",
        pruner=optuna.pruners.MedianPruner() if chosen.prune else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    if chosen.seed is not None:  # going on, it should not draw the same again
        study.sampler = optuna.samplers.TPESampler(seed=chosen.seed + len(study.trials))
    try:
        if study.user_attrs.get("metric", chosen.metric) != chosen.metric:
            raise UsageError(f"study {study.study_name} is about {study.user_attrs['metric']}: give another --study")
        study.set_user_attr("metric", chosen.metric)
        go_on(study, partial(attempt, study, space, fixed, chosen.metric), chosen.trials, min(chosen.heartbeat, 5))
        if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            raise UsageError("no trial came to an end with a finite value: try lower learning rates, say")
        best = study.best_trial
        local = chosen.storage.startswith("sqlite:///")
        picture = Path(chosen.storage.removeprefix("sqlite:///") if local else ".").parent / f"{study.study_name}.png"
        draw(study, picture)
        print(f"best {chosen.metric}: {best.value:.6g} (trial {best.number} of {len(study.trials)}); {picture}")
        print(shlex.join(["python", "main.py", *fixed, *said(best.params)]))
        return study.best_value, best.params
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _storage(url: str, heartbeat: int, again: int = 5) -> Any:
    """The database. Where two processes make it at the same moment, the second tries again."""
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
        if again and isinstance(error.__cause__ or error, (IntegrityError, OperationalError)):
            time.sleep(0.5)
            return _storage(url, heartbeat, again - 1)
        raise UsageError(f"--storage {url}: {str(error).splitlines()[0]}") from None


def go_on(study: Any, objective: Any, wanted: int, pause: float) -> None:
    """Starts one trial after the other until `wanted` are finished by this process or by others on the same storage.

    A trial that fell silent was killed: it is failed, and its values are tried again. pause: seconds, while the trials
    that are still missing are run by others.
    """
    from optuna.storages import fail_stale_trials

    while True:
        fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        finished = sum(trial.state.name in ("COMPLETE", "PRUNED") or "failed" in trial.user_attrs for trial in trials)
        if finished >= wanted:
            return
        if finished + sum(trial.state.name == "RUNNING" for trial in trials) < wanted:
            study.optimize(objective, n_trials=1, catch=(FloatingPointError,))
        else:
            time.sleep(pause)


def attempt(study: Any, space: Space, fixed: list[str], metric: str, trial: Any) -> float:
    """A run with the values of a trial: what it measured last.

    Raises:
        FloatingPointError: it came to no finite value; the trial counts, and the search goes on.
    """
    import optuna
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import LambdaCallback

    try:
        values = drawn(trial, space)
    except ValueError as error:
        raise UsageError(f"study {study.study_name} has another space ({error}): give another --study") from None
    number = itertools.count()

    def tell(trainer: Trainer, module: Any) -> None:
        if trainer.world_size > 1:
            raise UsageError("sweep.py runs each trial in one process: --devices 1; start it several times instead")
        value = trainer.callback_metrics.get(metric)
        if value is not None and not trainer.sanity_checking:
            trial.report(value.item(), next(number))
            if trial.should_prune():
                raise optuna.TrialPruned

    print(f"\ntrial {trial.number}: {' '.join(said(values))}", flush=True)
    try:
        measured = project.main(fixed + said(values), [LambdaCallback(on_validation_end=tell)])
        if metric not in measured:
            raise UsageError(f"--metric {metric}: a run has {', '.join(measured)}")
        if not math.isfinite(measured[metric]):
            raise FloatingPointError(f"{metric} is {measured[metric]}")
    except FloatingPointError as error:
        trial.set_user_attr("failed", str(error))
        raise
    except SystemExit as ended:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        if ended.code != 2:  # a signal, and no mistake
            study.enqueue_trial(trial.params)
        raise
    return measured[metric]


def draw(study: Any, path: Path) -> None:
    """The values of the trials in their order, and over each flag."""
    from matplotlib.figure import Figure

    trials = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    names = sorted({name for trial in trials for name in trial.params})
    metric = study.user_attrs["metric"]
    figure = Figure(figsize=(4 * (1 + len(names)), 3.5), layout="constrained")
    for place, name in enumerate(["trial", *names]):
        axes = figure.add_subplot(1, 1 + len(names), place + 1, xlabel=name, ylabel=metric)
        having = [trial for trial in trials if name == "trial" or name in trial.params]
        across: list[Any] = [trial.number if name == "trial" else trial.params[name] for trial in having]
        if not all(type(value) in (int, float) for value in across):
            across = [str(value) for value in across]
        axes.plot(across, [trial.value for trial in having], "o")
        axes.plot(across[having.index(study.best_trial)], study.best_value, "*", markersize=14)
        if any(getattr(trial.distributions.get(name), "log", False) for trial in having):
            axes.set_xscale("log")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
