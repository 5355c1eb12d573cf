"""`--num_folds 5`: k-fold cross-validation. Each fold is a run; mean and standard deviation are reported at the end."""

import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pytorch_lightning.utilities import rank_zero_only

from engine.checkpointing import run_folder
from engine.checkpointing.atomic_write import read_json, write_json
from engine.cli.annotations import as_text
from engine.datamodule.class_balance import known_classes
from engine.datamodule.splits import item_groups
from engine.errors import UsageError

Metrics = dict[str, float]
SPLIT_FLAGS = ("num_folds", "fold")
# Flags that may differ between the folds of one cross-validation: they do not change what is learned.
_NOT_COMPARED = (
    "fold all_folds num_workers num_threads data_dir default_root_dir enable_progress_bar hang_minutes logger mirror "
    "log_every_n_steps accelerator devices keep_memory every_n_train_steps every_n_minutes run_name tags notes"
).split()


def callbacks(
    *,
    num_folds: Annotated[int, ">= 2", "<= 1000000"] | None = None,
    fold: Annotated[int, ">= 1"] | None = None,
    all_folds: bool = False,
) -> list[Any]:
    """Flags only; `splitter` and `fit` use them.

    num_folds: cross-validation over this many folds, instead of val_fraction; the test split stays the same.
    fold: train only this fold, 1 to num_folds; none trains all, one after the other.
    all_folds: with --fold: train the remaining folds after it.
    """
    return []


def splitter(
    *, num_folds: int | None, fold: int | None, all_folds: bool
) -> Callable[[Any, list[int], int], tuple[list[int], list[int]]] | None:
    """A function (dataset, indices, seed) -> (train indices, val indices) of the fold; None without --num_folds.

    Raises: UsageError: there is no such fold.
    """
    if num_folds is None:
        if fold is not None or all_folds:
            raise UsageError("--fold and --all_folds need --num_folds")
        return None
    if fold is None or fold > num_folds:
        given = "is missing" if fold is None else f"{fold}: there is no such fold;"
        raise UsageError(f"--fold {given} give 1 to {num_folds} (--num_folds)")

    def split(dataset: Any, indices: list[int], seed: int) -> tuple[list[int], list[int]]:
        from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

        known, groups = known_classes(dataset), item_groups(dataset)
        classes = None if known is None else known[indices].tolist()
        fewest = len(indices) if classes is None else min(map(classes.count, set(classes)))
        if fewest < num_folds:
            raise UsageError(f"--num_folds {num_folds}: {'a class' if classes else 'the data'} has only {fewest} items")
        chosen = [] if groups is None else groups[indices].tolist()
        if chosen and (number := len({*chosen})) < num_folds:
            raise UsageError(f"--num_folds {num_folds}: the data has only {number} groups")
        kind = StratifiedGroupKFold if chosen else KFold if classes is None else StratifiedKFold
        k_fold = kind(num_folds, shuffle=True, random_state=seed)
        train, val = list(k_fold.split(indices, classes or [0] * len(indices), chosen or None))[fold - 1]
        return [indices[position] for position in train], [indices[position] for position in val]

    return split


def fit(settings: Any, run: Callable[[Any], Metrics]) -> Metrics:
    """Trains one fold or all of them; with --ckpt_path, finished folds are not repeated.

    After each fold, fold.json is written into its run folder; after the last one, folds.json with the mean and sample
    standard deviation of every metric, which are printed too.

    Returns: The metrics of the fold, or their means over all folds.
    """
    flags = settings.arguments["cross_validation"]
    if not flags["num_folds"]:
        return run(settings)
    if "val_fraction" in settings.flags.keys() - settings.defaults:
        rank_zero_only(print)("--val_fraction has no effect with --num_folds, which says what is for validation")
    first, num_folds = flags["fold"], flags["num_folds"]
    root = run_folder.logs_root(settings.flags.get("default_root_dir"))
    all_folds = first is None or flags["all_folds"]
    folds = [first or 1]
    if all_folds:
        settings = _on_one_device(settings)
        finished = _finished(settings, root, num_folds) if settings.ckpt_path else {}
        folds = [fold for fold in dict.fromkeys([*folds, *range(1, num_folds + 1)]) if fold not in finished]
    metrics: Metrics = {}
    for fold in folds:
        ckpt_path = settings.ckpt_path if fold == first else None
        changed = {"fold": fold, "all_folds": all_folds}
        name = settings.flags.get("run_name")
        label = {"run_name": name and f"{re.sub(r'-fold[0-9]+$', '', name)}-fold{fold}"}
        own = {"cross_validation": flags | changed, "loggers": settings.arguments["loggers"] | label}
        one = settings._replace(flags=settings.flags | changed | label, arguments=settings.arguments | own)
        metrics = run(one._replace(ckpt_path=ckpt_path))
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            run_dir = (run_folder.run_of(ckpt_path) if ckpt_path else None) or _runs_of_fold(settings, root, fold)[-1]
            write_json(run_dir / "fold.json", {"fold": fold, "num_folds": num_folds, "metrics": metrics})
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    means = _summarize(_finished(settings, root, num_folds), num_folds) if is_first else {}
    return means if all_folds else metrics


def _on_one_device(settings: Any) -> Any:
    """The settings with `devices` 1: each of several processes would go through all folds by itself."""
    trainer = settings.arguments["trainer"]
    devices = trainer.get("devices", "auto")
    count = len(devices) if isinstance(devices, (list, tuple)) else 1 if devices == "auto" else devices
    ranks = [int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS")]
    if str(count) != "1" or max(*ranks, trainer.get("num_nodes") or 1) > 1:
        ways = "give --devices 1, or one command with --fold K for each fold, on any number of devices"
        raise UsageError(f"--num_folds trains one fold after the other in one process: {ways}")
    trainer = trainer | ({"devices": 1} if devices == "auto" else {})
    return settings._replace(arguments=settings.arguments | {"trainer": trainer})


def _runs_of_fold(settings: Any, root: Path, fold: int) -> list[Path]:
    """The run folders of a fold with the same flags, except for _NOT_COMPARED; the newest is last."""
    wanted = {name: as_text(value) for name, value in settings.flags.items() if name not in _NOT_COMPARED}
    runs = []
    for run in run_folder.run_folders(root):
        try:  # runs from before --stratify did not stratify
            flags = {"stratify": "false"} | run_folder.kept_flags(run)
        except UsageError:
            continue  # a broken run is none of these
        if flags.get("fold") == str(fold) and all(flags[name] == wanted[name] for name in flags.keys() & wanted.keys()):
            runs.append(run)
    return runs


def _finished(settings: Any, root: Path, num_folds: int) -> dict[int, tuple[Path, Metrics]]:
    """The newest run folder of each finished fold, and its metrics."""
    finished = {}
    for fold in range(1, num_folds + 1):
        for path in (run_dir / "fold.json" for run_dir in _runs_of_fold(settings, root, fold)):
            if path.is_file():
                finished[fold] = path.parent, read_json(path, {})["metrics"]
    return finished


def _summarize(finished: dict[int, tuple[Path, Metrics]], num_folds: int) -> Metrics:
    """Prints mean and standard deviation, writes folds.json, returns the means; {} while folds are missing."""
    if len(finished) < num_folds:
        print(f"{len(finished)} of {num_folds} folds are finished")
        return {}
    folds = [metrics for _, metrics in finished.values()]
    values = {name: [metrics[name] for metrics in folds] for name in folds[0] if all(name in other for other in folds)}
    mean = {name: statistics.fmean(numbers) for name, numbers in values.items()}
    std = {name: statistics.stdev(numbers) for name, numbers in values.items()}
    path = max((run_dir for run_dir, _ in finished.values()), key=run_folder.number_of) / "folds.json"
    each = {fold: {"run": run_dir.name, **metrics} for fold, (run_dir, metrics) in finished.items()}
    write_json(path, {"num_folds": num_folds, "mean": mean, "std": std, "folds": each})
    print(f"mean and standard deviation over {num_folds} folds:")
    print("\n".join(f"{name:<12} {mean[name]:.4f} +- {std[name]:.4f}" for name in mean) + f"\n{path}")
    return mean
