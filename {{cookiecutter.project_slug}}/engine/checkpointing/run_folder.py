"""The run folders `lightning_logs/version_N`: made, opened again, finished. No torch here."""

import re
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.checkpointing import run_lock
from engine.checkpointing.atomic_write import read_json, warn_if_unwritable, write_atomically, write_json
from engine.cli import config_file, features_and_commands
from engine.cli.credentials import HIDDEN
from engine.cli.settings import Settings
from engine.errors import UsageError, nearest

FOLDER = "lightning_logs"
_created: list[Path] = []  # by this process


def logs_root(default_root_dir: str | Path | None) -> Path:
    """The folder of the run folders: `lightning_logs` in `default_root_dir`, or in the working directory."""
    if "://" in str(default_root_dir):  # as a path it would be a folder of the name `s3:`
        hint = f"; --mirror {default_root_dir} copies it there" if features_and_commands.hooks("fetch") else ""
        raise UsageError(f"--default_root_dir {default_root_dir}: a run is written to a disk of this machine{hint}")
    return Path(default_root_dir or ".") / FOLDER


def open_run(settings: Settings, default_root_dir: str) -> Path:
    """The folder of the run that is resumed, or a new one. Rank 0 alone writes to it.

    One that is trained is locked, gets its config.yaml, and loses the unfinished files of killed saves.
    """
    import shutil  # not needed for help

    from pytorch_lightning.utilities import rank_zero_only

    root, run = logs_root(default_root_dir), None
    if settings.ckpt_path and not settings.arguments["trainer"].get("fast_dev_run"):
        run = run_of(settings.ckpt_path)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return run or root
    if trains := settings.action in ("fit", "tune"):
        check_run_name(settings.flags.get("run_name"), root, run)
    try:
        run = run or create(root)
        if settings.job_id:
            (run / settings.job_id).touch()
        if trains or settings.ckpt_path is None:
            run_lock.acquire(run, settings.job_id)
            for part in sorted(run.rglob("*.part")):
                with suppress(FileNotFoundError):  # outside checkpoints/, a new one is that of a command at work
                    if part.parent.name == "checkpoints" or time.time() - part.lstat().st_mtime > 3600:
                        shutil.rmtree(part) if part.is_dir() else part.unlink()
            if not (run / "config.yaml").exists():
                write_atomically(run / "config.yaml", config_text(settings))
    except OSError as error:
        raise SystemExit(f"main.py: error: cannot write to {run or root}: {error.strerror or error}") from None
    return run


def config_text(settings: Settings) -> str:
    """The text of config.yaml."""
    own = settings.arguments.get("action", {})  # flags of the command alone are no settings of the run
    kept = {name: value for name, value in settings.flags.items() if name not in own}
    return config_file.dump(kept, settings.defaults)


def remove_untrained() -> None:
    """Removes the run folders that this process has made and that hold neither a metric nor a checkpoint."""
    import shutil  # not needed for help

    for run in _created:
        if not (run / "metrics.csv").exists() and not any(run.glob("checkpoints/*")):
            shutil.rmtree(run, ignore_errors=True)


def dry_run(settings: Settings, run: Callable[[Settings], dict[str, float]]) -> dict[str, float]:
    """`--fast_dev_run`: a few batches in a temporary folder, so that no run folder is made or written to."""
    import tempfile  # not needed for help

    with tempfile.TemporaryDirectory() as folder:
        elsewhere = settings.arguments["run"] | {"default_root_dir": folder}
        metrics = run(settings._replace(arguments=settings.arguments | {"run": elsewhere}))
    print("--fast_dev_run: all steps ran; no files were kept")
    return metrics


def finish(trainer: Any, run: Path, job_id: str, metrics: dict[str, float]) -> None:
    """Marks the job as ended, prints the metrics and merges them into metrics.json; on rank 0 alone."""
    if not trainer.is_global_zero:
        return
    if job_id:
        with warn_if_unwritable(run / job_id):
            write_atomically(run / job_id, "ended")
    if not metrics:
        return
    path = run / "metrics.json"
    try:
        before = read_json(path, {})
    except UsageError as error:  # no reason to lose the new ones
        print(f"{error}; written anew", file=sys.stderr)
        before = {}
    with warn_if_unwritable(path):
        write_json(path, before | metrics)
    print(f"{_table(metrics)}\n{run}")


def _table(metrics: dict[str, float]) -> str:
    """A line a metric; of a training a column for its last epoch and one for the best checkpoint, which was tested."""
    last, best = dict(metrics), dict[str, float]()
    if "best_epoch" in metrics:
        best = {name: last.pop(name) for name in metrics if name.startswith(("best_", "test"))}
        best = {name.removeprefix("best_"): value for name, value in best.items()}
    labelled = (("", last), ("best: ", best))
    heads = [f"{label}epoch {one.pop('epoch')}" if "epoch" in one else "" for label, one in labelled]
    width = max([12, *map(len, last | best)])
    rows = [("", *heads)] if any(heads) else []
    rows += [(name, *(f"{one[name]:.4f}" if name in one else "" for one in (last, best))) for name in last | best]
    return "\n".join(f"{name:<{width}} {value:<10} {chosen}".rstrip() for name, value, chosen in rows)


def create(root: Path) -> Path:
    """Makes the next free `version_N`. Two runs that start at the same time get one each."""
    root.mkdir(parents=True, exist_ok=True)
    number = max(map(number_of, run_folders(root)), default=-1) + 1
    while True:
        try:
            (root / f"version_{number}").mkdir()
            _created.append((root / f"version_{number}").absolute())
            return root / f"version_{number}"
        except FileExistsError:
            number += 1


def resume_command(run: Path) -> str:
    """The command line that resumes a run, with the flags that no run keeps."""
    flags = kept_flags(run)
    not_kept = features_and_commands.listed("NOT_KEPT")
    asked = [name for name in flags if HIDDEN in flags[name] or name in not_kept]
    again = [f"--{name}={flags[name]}" for name in asked if flags[name] not in ("none", "null")]
    return shlex.join(["python", "main.py", "--ckpt_path", str(run), *again])


def kept_flags(run: Path) -> dict[str, str]:
    """The flags in the config.yaml of a run, as text; {} where there is none. Raises: UsageError: it is broken."""
    config = run / "config.yaml"
    return {name: raw.text for name, raw in config_file.read(config, kept=True).items()} if config.is_file() else {}


def run_of(ckpt_path: Path) -> Path | None:
    """The run folder in which a checkpoint was written, if it still lies in one."""
    checkpoints = ckpt_path.absolute().parent
    run = checkpoints.parent
    if checkpoints.name != "checkpoints" or not (run / "config.yaml").is_file():
        return None
    return run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run


def check_run_name(name: str | None, root: Path, resumed: Path | None) -> None:
    """Raises UsageError where --run_name is taken: by another run, or as a word that --ckpt_path knows."""
    if name is None:
        return
    if not re.fullmatch(r"\w[\w.+=-]{,99}", name) or re.fullmatch(r"last|best|version_\d+", name):
        raise UsageError(
            f"--run_name {name}: letters, digits and _ . + = - only, 100 at most, and not last, best or version_N"
        )
    if taken := [run for run in find_named(name, root) if not (resumed and run.samefile(resumed))]:
        raise UsageError(f"--run_name {name} is {taken[0]}: give another, or go on with that by --ckpt_path {name}")


def known_runs(name: str, root: Path) -> str:
    """The message where there is no run of a name: the nearest one, the latest ones, and what lists them all."""
    labels = dict[str, str]()
    for run in run_folders(root):
        run_name = _run_name(run)
        labels[run.name] = labels[run_name or run.name] = f"{run_name} ({run.name})" if run_name else run.name
    latest = ", ".join([*dict.fromkeys(labels.values())][-5:]) or "no run"
    every = "; all: python main.py runs" if "runs" in features_and_commands.commands() else ""
    near = "" if re.fullmatch(r"version_\d+", name) else nearest(name, labels)
    near = re.sub("'(.*)'", lambda found: labels[found[1]], near)
    return f"{near}; {root}/ has {latest}{every}"


def find_named(name: str, root: Path) -> list[Path]:
    """The run folders of that --run_name that have a checkpoint; a run that failed before does not keep its name."""
    return [run for run in run_folders(root) if _run_name(run) == name and any(run.glob("checkpoints/*.ckpt"))]


def _run_name(run: Path) -> str | None:
    """The --run_name of a run, by its line alone: to parse the files of all runs would take long."""
    text = (run / "config.yaml").read_text("utf-8", "replace") if (run / "config.yaml").is_file() else ""
    found = re.search(r"""^run_name: ['"]?([\w.+=-]+)""", text, re.M)
    return found[1] if found and found[1] not in ("none", "null") else None


def event_files(run: Path) -> list[Path]:
    """TensorBoard's files of a run: in its folder, or in a folder there that is called as its --run_name."""
    return sorted(run.glob("events.out.*")) or sorted(run.glob("*/events.out.*"))


def run_folders(root: Path) -> list[Path]:
    """The run folders in `root`, by their number."""
    return sorted((path for path in root.glob("version_*") if re.fullmatch(r"version_\d+", path.name)), key=number_of)


def number_of(run: Path) -> int:
    """The N of version_N."""
    return int(run.name.removeprefix("version_"))
