"""The run folders `lightning_logs/version_N`: claim a new one, find the checkpoint that a name means. No torch here."""

import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from engine import config, discovery
from engine.discovery import UsageError
from engine.settings import Settings

FOLDER = "lightning_logs"
_BEST = re.compile(r"best-epoch=(\d+)-(.+)=([-+.\deE]+|nan|inf)\.ckpt")


def folder(default_root_dir: str | Path | None) -> Path:
    """Where the run folders lie: `lightning_logs` in `default_root_dir`, or in the working directory."""
    if "://" in str(default_root_dir):  # as a path it would be a folder of the name `s3:`
        said = f"--default_root_dir {default_root_dir}: a run is written to a disk of this machine"
        has = discovery.defines("mirror", "callbacks")
        raise UsageError(said + (f"; --mirror {default_root_dir} copies it there" if has else ""))
    return Path(default_root_dir or ".") / FOLDER


def of(settings: Settings, default_root_dir: str) -> Path:
    """The folder of a run: where it goes on, or a new one. The first process opens it; the others write nothing."""
    from pytorch_lightning.utilities import rank_zero_only

    rehearses = settings.arguments["trainer"].get("fast_dev_run")
    run, root = run_of(settings.ckpt_path) if settings.ckpt_path and not rehearses else None, folder(default_root_dir)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return run or root
    own = settings.arguments.get("action", {})  # what only this action asks is no setting of a run
    kept = {name: value for name, value in settings.flags.items() if name not in own}
    return open_folder(run, root, config.dump(kept) if settings.action in ("fit", "tune") else None, settings.mark)


def rehearse(settings: Settings, run: Callable[[Settings], dict[str, float]]) -> dict[str, float]:
    """`--fast_dev_run`: a few batches in a folder that goes again, so that no run is begun or written over."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        elsewhere = settings.arguments["run"] | {"default_root_dir": folder}
        metrics = run(settings._replace(arguments=settings.arguments | {"run": elsewhere}))
    print("--fast_dev_run: it works, and nothing of it was kept")
    return metrics


def end(run: Path, mark: str, metrics: dict[str, float]) -> None:
    """Says in the run folder that the job of that mark is over, prints a table of what was measured, and keeps it as
    metrics.json, beside what stood there."""
    import json

    if mark:
        (run / mark).write_text("ended", "utf-8")
    if not metrics:
        return
    path = run / "metrics.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(before | metrics, indent=2) + "\n", encoding="utf-8")
    width = max(12, *map(len, metrics))
    print("\n".join(f"{name:<{width}} {value:.4f}" for name, value in metrics.items()) + f"\n{run}")


def open_folder(run: Path | None, root: Path, config: str | None, mark: str = "") -> Path:
    """The folder of a run that goes on, or a new one, found to be writable; parts of dead saves are cleared away.

    config: what to keep as config.yaml, or None to write nothing.
    mark: the name of a file by which the job finds its run again, or "".
    """
    try:
        run = run or claim(root)
        if mark:
            (run / mark).touch()
        if config is not None:
            for part in sorted(run.rglob("*.part")):
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            part = run / "config.yaml.part"
            part.write_text(config, encoding="utf-8")
            os.replace(part, run / "config.yaml")
    except OSError as error:
        raise SystemExit(f"main.py: error: cannot write to {run or root}: {error.strerror}") from None
    return run


def claim(root: Path) -> Path:
    """Makes the next free `version_N`. Two runs that start at the same moment get one each."""
    root.mkdir(parents=True, exist_ok=True)
    number = max(_versions(root), default=-1) + 1
    while True:
        try:
            (root / f"version_{number}").mkdir()
            return root / f"version_{number}"
        except FileExistsError:
            number += 1


def run_of(ckpt_path: Path) -> Path | None:
    """The run folder in which a checkpoint was written, if it still lies in one."""
    checkpoints = ckpt_path.absolute().parent
    run = checkpoints.parent
    if checkpoints.name != "checkpoints" or not (run / "config.yaml").is_file():
        return None
    return run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run


def find(name: str, root: Path, resume: bool, flag: str = "ckpt_path") -> Path:
    """The checkpoint file that `name` means.

    name: `last` and `best` (of the newest run; `report` compares runs), `version_3`, a folder, a file, or an address
        such as s3://bucket/runs/version_3, which is fetched.
    resume: of a run folder take the last checkpoint, to go on from; otherwise its best one.
    flag: the one that said so, for the message.

    Raises:
        UsageError: there is none; the message says what there is.
    """
    if name in ("last", "best"):
        found = _newest(root, _lasts if name == "last" else _bests)
        if not found:
            raise UsageError(f"--{flag} {name}: no {name} checkpoint in {root}/ yet")
        return found[0]
    if "://" in name and discovery.defines("storage", "fetch"):
        name = str(importlib.import_module("engine.storage").fetch(name, root, flag))
    path = root / name if re.fullmatch(r"version_\d+", name) else Path(name)
    if path.is_file() or _is_sharded(path):
        return path
    if not path.is_dir():
        there = ", ".join(f"version_{number}" for number in sorted(_versions(root))[-5:]) or "no run"
        raise UsageError(f"--{flag} {name}: there is no such file or run folder; {root}/ has {there}")
    for kind in (_lasts, _bests) if resume else (_bests, _lasts):
        if files := kind(path):
            return files[-1]
    raise UsageError(f"--{flag} {name}: no checkpoint in {path}/checkpoints/")


def direction(monitor: str) -> str:
    """Whether less or more of a metric is better, by its name: "max" for accuracies and the like, else "min"."""
    more = "acc accuracy precision recall f1 f1score auroc auc iou dice psnr ssim r2 r2score map bleu match score"
    return "max" if set(monitor.lower().split("_")) & set(more.split()) else "min"


def _versions(root: Path) -> list[int]:
    found = (re.fullmatch(r"version_(\d+)", path.name) for path in root.glob("version_*"))
    return [int(match[1]) for match in found if match]


def _mtime(path: Path) -> float:
    return path.stat().st_mtime


def _lasts(run: Path) -> list[Path]:
    """The last checkpoint of a run; where it cannot be read, the newest of the others."""
    files = sorted(run.glob("checkpoints/*.ckpt"), key=lambda path: (path.name == "last.ckpt", _mtime(path)))
    whole = [path for path in files if _is_whole(path)]
    for path in [path for path in files if path not in whole]:
        print(f"passed over {path}: it is cut short or no checkpoint", file=sys.stderr)
    return whole[-1:]


def _is_whole(path: Path) -> bool:
    import zipfile  # here, so that a mere mistake on the command line need not wait for it

    return _is_sharded(path) or (path.is_file() and zipfile.is_zipfile(path))


def _is_sharded(path: Path) -> bool:
    """Whether it is a checkpoint in which each of several processes wrote its part: a folder."""
    return (path / ".metadata").is_file() and (path / "meta.pt").is_file()


def _newest(root: Path, kind: Callable[[Path], list[Path]]) -> list[Path]:
    runs = sorted(root.glob("version_*"), key=lambda run: max(map(_mtime, run.glob("checkpoints/*.ckpt")), default=0.0))
    return next((found for run in reversed(runs) if (found := kind(run))), [])


def _bests(run: Path) -> list[Path]:
    """The checkpoint with the best value of the metric in its name; of several metrics, that of the newest file."""
    files = sorted(run.glob("checkpoints/best-*.ckpt"), key=_mtime)
    scores = {path: match for path in files if (match := _BEST.fullmatch(path.name))}
    if not scores:
        return []
    monitor = list(scores.values())[-1][2]
    pick = max if direction(monitor) == "max" else min
    return [pick((path for path in scores if scores[path][2] == monitor), key=lambda path: float(scores[path][3]))]
