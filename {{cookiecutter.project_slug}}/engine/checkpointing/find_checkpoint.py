"""Which checkpoint `last`, `best`, `version_3`, a folder, a file or an address means. No torch here."""

import re
import sys
from pathlib import Path
from typing import Any, Literal, cast

from engine.checkpointing.monitor_mode import file_name, given_mode, known_mode, mode_of
from engine.checkpointing.run_folder import find_named, known_runs
from engine.cli import features_and_commands
from engine.errors import UsageError

_BEST = r"best-epoch(=?)(\d+)-(.+)=([-+.\deE]+|nan|inf)\.ckpt"  # =N, of version 0.1, is from 0


def find_checkpoint(name: str, root: Path, resume: bool, flag: str = "ckpt_path") -> Path:
    """The checkpoint file that `name` means.

    name: `last` and `best` (of the newest run; `report` compares runs), `version_3`, a --run_name, a folder, a file, or
        an address such as s3://bucket/runs/version_3, which is fetched.
    resume: whether a run folder means its last checkpoint, to resume from, or its best one.
    flag: the flag that names it, for errors.

    Raises: UsageError: there is none; the message lists those that exist.
    """
    if name in ("last", "best"):
        kind = _last_checkpoints if name == "last" else _best_checkpoints
        saved = {run: max(map(_mtime, run.glob("checkpoints/*.ckpt")), default=0.0) for run in root.glob("version_*")}
        for run in sorted(saved, key=lambda run: saved[run], reverse=True):
            if found := kind(run):
                return found[0]
        raise UsageError(f"--{flag} {name}: no {name} checkpoint in {root}/ yet")
    if "://" in name:
        fetches = [*features_and_commands.hooks("fetch").values()]
        if not fetches:
            raise UsageError(f"--{flag} {name} is an address, and no feature in engine/features fetches one")
        name = str(fetches[0](name, root, flag))
    path = root / name if re.fullmatch(r"version_\d+", name) else Path(name)
    try:
        if named := find_named(name, root):
            if others := [one for one in (path, *named[1:]) if one.exists()]:
                raise UsageError(f"--{flag} {name} is {named[0]}, and {others[0]} too: give the path of one")
            path = named[0]
        if path.is_file() or _is_sharded(path):
            return path
    except OSError as error:  # such as a name that is too long
        raise UsageError(f"--{flag} {name[:80]}: {error.strerror}") from None
    if not path.is_dir():
        raise UsageError(f"--{flag} {name}: there is no such file or run folder{known_runs(name, root)}")
    for kind in (_last_checkpoints, _best_checkpoints) if resume else (_best_checkpoints, _last_checkpoints):
        if files := kind(path):
            return files[-1]
    raise UsageError(f"--{flag} {name}: no checkpoint in {path}/checkpoints/")


def best_checkpoint(run: Path) -> tuple[str, float | None, int | None]:
    """The monitored metric of the best checkpoint of a run, its value and its epoch; ("", None, None)."""
    match = re.fullmatch(_BEST, files[-1].name) if (files := _best_checkpoints(run)) else None
    return (match[3], float(match[4]), int(match[2]) + bool(match[1])) if match else ("", None, None)


def best_mode(run: Path, monitor: str) -> Literal["min", "max"]:
    """Whether less or more of the metric is better by whose name a run has its best checkpoints.

    As it was given to the run, or is known of the metric, or as the checkpoints say. "epoch" counts where no metric was
    logged.

    Raises: UsageError: nobody knows.
    """
    if monitor == "epoch":
        return "max"
    files = run.glob("checkpoints/best-*.ckpt")
    same = (path for path in files if (match := re.fullmatch(_BEST, path.name)) and match[3] == file_name(monitor))
    said = (_state(path).get("mode") for path in same)
    return mode_of(monitor, given_mode(run) or known_mode(monitor) or next(said, None))


def _mtime(path: Path) -> float:
    """When a file was written; 0 where a run that trains has just put another in its place."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _last_checkpoints(run: Path) -> list[Path]:
    """The last checkpoint of a run; where it cannot be read, the newest of the others."""
    import zipfile  # not needed for help

    files = sorted(run.glob("checkpoints/*.ckpt"), key=lambda path: (path.name == "last.ckpt", _mtime(path)))
    whole = [path for path in files if _is_sharded(path) or zipfile.is_zipfile(path)]
    for path in [path for path in files if path not in whole and path.exists()]:
        print(f"skipped {path}: it is cut short or no checkpoint", file=sys.stderr)
    return whole[-1:]


def _is_sharded(path: Path) -> bool:
    """Whether it is a sharded checkpoint: a folder into which each process has written its shard."""
    return (path / ".metadata").is_file() and (path / "meta.pt").is_file()


def _best_checkpoints(run: Path) -> list[Path]:
    """The checkpoint with the best value of the metric in its name; of several metrics, that of the newest file."""
    files = sorted(run.glob("checkpoints/best-*.ckpt"), key=_mtime)
    scores = {path: match for path in files if (match := re.fullmatch(_BEST, path.name)) and match[4] != "nan"}
    if not scores:
        return []
    monitor = list(scores.values())[-1][3]
    values = {path: float(match[4]) for path, match in scores.items() if match[3] == monitor}
    if len(values) == 1:
        return [*values]
    pick = max if best_mode(run, monitor) == "max" else min
    best = [path for path, value in values.items() if value == pick(values.values())]
    try:  # the name of the file has six decimals of the value
        return [pick(best, key=lambda path: float(_state(path)["current_score"]))] if len(best) > 1 else best
    except UsageError:
        if all(path.exists() for path in best):
            raise
        return _best_checkpoints(run)  # a run that trains has just put another in the place of one


def _state(path: Path) -> dict[str, Any]:
    """The state of BestCheckpoint in a checkpoint."""
    from engine.checkpointing import checkpoint_io  # needs torch

    return cast(dict[str, Any], checkpoint_io.load(path)["callbacks"]["BestCheckpoint"])
