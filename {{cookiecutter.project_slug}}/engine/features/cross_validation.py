"""`--num_folds 5`: cross-validation. Each fold is a run of its own; mean and spread over them come at the end."""

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.checkpointing import run_folder
from engine.cli import config_file
from engine.errors import UsageError

Metrics = dict[str, float]
# In these, runs of one cross-validation may differ: they say where and how it is run, not what is learnt.
_FREE = (
    "fold all_folds num_workers num_threads data_dir default_root_dir enable_progress_bar hang_minutes logger mirror "
    "log_every_n_steps accelerator devices keep_memory every_n_train_steps every_n_minutes"
).split()


def callbacks(
    folder: Any,
    model: Any,
    data: Any,
    *,
    num_folds: int | None = None,
    fold: int | None = None,
    all_folds: bool = False,
) -> list[Any]:
    """The flags; what they do is done around the run and not in it.

    Args:
        num_folds: cross-validation over so many folds, in place of val_fraction; the test part stays the same.
        fold: train this one of the folds alone, 1 to num_folds; none trains one after the other.
        all_folds: after this fold train those that are not finished, as --num_folds does without --fold.
    """
    return []


def splitter(
    *, num_folds: int | None, fold: int | None, all_folds: bool
) -> Callable[[Any, list[int], int], tuple[list[int], list[int]]] | None:
    """What cuts (dataset, indices, seed) into the indices to train on and those to validate on; None for no folds.

    Raises:
        UsageError: there is no such fold.
    """
    if num_folds is None:
        if fold is not None or all_folds:
            raise UsageError("--fold and --all_folds need --num_folds")
        return None
    if fold is None or fold > num_folds:
        given = "is missing" if fold is None else f"{fold}: there is no such fold;"
        raise UsageError(f"--fold {given} give 1 to {num_folds} (--num_folds)")

    def cut(dataset: Any, indices: list[int], seed: int) -> tuple[list[int], list[int]]:
        from sklearn.model_selection import KFold, StratifiedKFold

        classes = _classes(dataset, indices)
        fewest = len(indices) if classes is None else min(map(classes.count, set(classes)))
        if fewest < num_folds:
            raise UsageError(f"--num_folds {num_folds}: {'a class' if classes else 'the data'} has {fewest} items only")
        kind = KFold if classes is None else StratifiedKFold
        parts = list(kind(num_folds, shuffle=True, random_state=seed).split(indices, classes))
        train, val = parts[fold - 1]
        return [indices[place] for place in train], [indices[place] for place in val]

    return cut


def _classes(dataset: Any, indices: list[int]) -> list[int] | None:
    """The class of each item, where the dataset lists whole numbers as `targets`."""
    import torch

    try:
        targets = torch.as_tensor(dataset.targets)
    except (AttributeError, TypeError, ValueError):
        return None
    whole = targets.dim() == 1 and not targets.is_floating_point()
    return targets[torch.as_tensor(indices)].tolist() if whole else None


def fit(settings: Any, run: Callable[[Any], Metrics]) -> Metrics:
    """Trains one fold or all of them; what is finished already is not repeated where a checkpoint is gone on from.

    When the last fold is finished, mean and standard deviation (of a sample: over folds - 1) of every metric are
    printed and kept as folds.json in its run folder.

    settings: of the command line. run: trains by settings and returns the metrics.

    Returns:
        The metrics of the fold, or their means over all folds.
    """
    own = settings.arguments["cross_validation"]
    if not own["num_folds"]:
        return run(settings)
    first, num_folds, root = own["fold"], own["num_folds"], run_folder.logs_root(settings.flags.get("default_root_dir"))
    every = first is None or own["all_folds"]
    if every:
        settings = _on_one_device(settings)
    finished = _finished(settings, root) if settings.ckpt_path else {}
    wanted = [first or 1] + [fold for fold in range(1, num_folds + 1) if every and fold != (first or 1)]
    metrics: Metrics = {}
    for fold in wanted:
        if every and fold in finished:
            continue
        goes_on = settings.ckpt_path if fold == first else None
        now = {"fold": fold, "all_folds": every}
        arguments = settings.arguments | {"cross_validation": own | now}
        metrics = run(settings._replace(flags=settings.flags | now, arguments=arguments, ckpt_path=goes_on))
        if _writes():
            folder = (run_folder.run_of(goes_on) if goes_on else None) or _alike(settings, root, fold)[-1]
            _write(folder / "fold.json", {"fold": fold, "num_folds": num_folds, "metrics": metrics})
    means = _summary(_finished(settings, root), num_folds) if _writes() else {}
    return means if every else metrics


def _on_one_device(settings: Any) -> Any:
    """The same settings for one process: others that a Trainer starts would each go through the folds by themselves."""
    trainer = settings.arguments["trainer"]
    devices, there = trainer.get("devices", "auto"), {"auto": 1}
    number = len(devices) if isinstance(devices, (list, tuple)) else there.get(devices, devices)
    ranks = [int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS")]
    if str(number) != "1" or max(*ranks, trainer.get("num_nodes") or 1) > 1:
        raise UsageError(
            "--num_folds trains one fold after the other in one process: give --devices 1, "
            "or one command with --fold K for each fold, on as many devices as you like"
        )
    own = {"devices": 1} if devices == "auto" else {}
    return settings._replace(arguments=settings.arguments | {"trainer": trainer | own})


def _writes() -> bool:
    from pytorch_lightning.utilities import rank_zero_only

    return rank_zero_only.rank == 0  # type: ignore[attr-defined, no-any-return]


def _alike(settings: Any, root: Path, fold: int) -> list[Path]:
    """The run folders of a fold, the newest last: their flags are the same, but for those that change no result."""
    import yaml

    def telling(flags: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in flags.items() if name not in _FREE}

    wanted = telling(yaml.safe_load(config_file.dump(settings.flags)))
    found = []
    for path in root.glob("version_*/config.yaml"):
        flags = yaml.safe_load(path.read_text(encoding="utf-8"))
        if flags.get("fold") == fold and telling(flags) == wanted:
            found.append(path.parent)
    return sorted(found, key=lambda folder: (len(folder.name), folder.name))


def _finished(settings: Any, root: Path) -> dict[int, tuple[Path, Metrics]]:
    """The folds that were trained to the end: the newest run folder of each, and its metrics."""
    done = {}
    for fold in range(1, settings.arguments["cross_validation"]["num_folds"] + 1):
        for folder in _alike(settings, root, fold):
            if (folder / "fold.json").is_file():
                done[fold] = folder, json.loads((folder / "fold.json").read_text(encoding="utf-8"))["metrics"]
    return done


def _summary(done: dict[int, tuple[Path, Metrics]], num_folds: int) -> Metrics:
    """Prints and keeps mean and spread where all folds are finished; returns the means."""
    if len(done) < num_folds:
        print(f"{len(done)} of {num_folds} folds are finished")
        return {}
    every = [metrics for _, metrics in done.values()]
    values = {name: [metrics[name] for metrics in every] for name in every[0] if all(name in one for one in every)}
    mean = {name: statistics.fmean(numbers) for name, numbers in values.items()}
    std = {name: statistics.stdev(numbers) for name, numbers in values.items()}
    folds = {fold: {"run": folder.name, **metrics} for fold, (folder, metrics) in done.items()}
    path = (
        max((folder for folder, _ in done.values()), key=lambda folder: (len(folder.name), folder.name)) / "folds.json"
    )
    _write(path, {"num_folds": num_folds, "mean": mean, "std": std, "folds": folds})
    print(f"mean and standard deviation over {num_folds} folds:")
    print("\n".join(f"{name:<12} {mean[name]:.4f} +- {std[name]:.4f}" for name in mean) + f"\n{path}")
    return mean


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
