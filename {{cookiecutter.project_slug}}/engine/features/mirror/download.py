"""Downloads a run, or a file, from a storage whose listing is not trusted (`files_of_run`). No torch here."""

import hashlib
import os
import re
import shutil
import socket
import sys
import unicodedata
from pathlib import Path
from typing import Any

from engine.checkpointing import run_folder
from engine.checkpointing.atomic_write import atomic_file
from engine.checkpointing.safe_file_names import unsafe_reason
from engine.cli.credentials import hide
from engine.errors import UsageError, printable
from engine.features.mirror.storage import connect, is_local, list_names, one_line_errors

_STATE_FILE = "fetched.txt"  # in a run folder: the hash of the remote listing that it was fetched from
# The files of a run folder; others are not fetched. Of wandb/ not its settings, which name the server of the API key.
_RUN_FILES = re.compile(
    r"config\.yaml|metrics\.csv|(metrics|data|environment|folds?|labels)\.json|mirror\.txt|mlflow-run|[^/]+\.png"
    r"|(\w[\w.+=-]*/)?(hparams\.yaml|events\.[^/]+)|(slurm|torchrun)-[^/]+|checkpoints/[^/]+\.ckpt(/[^/]+)?|network\.[^/]+|predictions\.[^/]+"
    r"|predictions/.+\.png|bad_step_\d+\.pt|[^/]*profile[^/]*\.(txt|json)|mlruns/.+|wandb/[^/]*run-[^/]+-[^/]+/.+"
)


def fetch(url: str, root: Path, flag: str) -> Path:
    """Downloads a run to a folder of its name below `root`, or of the next free name; or a file to root/fetched.

    An unchanged run or file is downloaded once, by one of the processes that ask for it. flag: for errors.

    Returns: The run folder, or the file.
    Raises: UsageError: it does not exist, or the download fails.
    """
    fs, path = connect(url, flag)
    run, checkpoint = path, ""
    with one_line_errors(f"--{flag} {url}"):
        if fs.isfile(path):
            run, _, checkpoint = path.rpartition("/checkpoints/")
            if not run or not fs.isfile(f"{run}/config.yaml"):
                return _fetch_file(fs, path, root)
        if not fs.isfile(f"{run}/config.yaml"):
            parent = path if list_names(fs, path) else path.rpartition("/")[0]
            names = ", ".join(list_names(fs, parent)[-8:]) or "nothing"
            raise UsageError(f"--{flag} {url}: there is no such file or run; {fs.unstrip_protocol(parent)} has {names}")
        return _fetch_run(fs, run, root, url) / (f"checkpoints/{checkpoint}" if checkpoint else "")


def _fetch_file(fs: Any, path: str, root: Path) -> Path:
    """A single file, such as weights of somebody else."""
    info, name = fs.info(path), path.rpartition("/")[2]
    target = root / "fetched" / f"{_hash(info)[:8]}-{name}"
    if problem := unsafe_reason(target.name):
        raise ValueError(f"{name!r} is refused: {problem}")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as part:
            _download(fs, path, info, part)
    return target


def _fetch_run(fs: Any, run: str, root: Path, url: str) -> Path:
    from filelock import FileLock  # comes with torch

    state = _hash(fs.find(run, detail=True))
    if run_dir := _find_fetched(root, state):
        return run_dir
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".fetch.lock"):
        if run_dir := _find_fetched(root, state):  # meanwhile
            return run_dir
        part = root / f".{state[:8]}-{socket.gethostname()}.part"  # not every disk of several machines has locks
        for last_attempt in (False, False, True):  # a checkpoint may be replaced meanwhile
            shutil.rmtree(part, ignore_errors=True)
            try:
                _download_run(fs, run, part)
                break
            except FileNotFoundError:
                if last_attempt:
                    raise
        (part / _STATE_FILE).write_text(state, encoding="utf-8")
        run_dir = root / run.rpartition("/")[2]
        try:
            if unsafe_reason(run_dir.name):
                raise FileExistsError
            run_dir.mkdir()
        except FileExistsError:
            run_dir = run_folder.create(root)
        os.rename(part, run_dir)  # replaces the empty folder
    print(f"fetched {printable(hide(url))} to {run_dir}", file=sys.stderr)
    return run_dir


def _find_fetched(root: Path, state: str) -> Path | None:
    """The run folder that was fetched from a listing of that hash."""
    found = (path for path in root.glob(f"*/{_STATE_FILE}") if path.parent.suffix != ".part")
    return next((path.parent for path in found if path.read_text(encoding="utf-8") == state), None)


def _download_run(fs: Any, run: str, target: Path) -> None:
    """Downloads last.ckpt first: the other files may be newer than it (more rows of metrics.csv), but not older."""
    listing = fs.find(run, detail=True)
    paths = files_of_run(listing, run, is_local(fs))
    for name in sorted(paths, key=lambda name: not name.endswith("/last.ckpt")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _download(fs, paths[name], listing[paths[name]], target / name)


def _download(fs: Any, path: str, info: Any, target: Path) -> None:
    """Downloads a file.

    Raises:
        ValueError: it finds no room on the disk, or is a decompression bomb.
        FileNotFoundError: it is larger than listed: it was replaced meanwhile.
    """
    listed, packed, free = info.get("size"), info.get("compress_size"), shutil.disk_usage(target.parent).free
    if listed is not None and listed > free:
        raise ValueError(f"{path} is refused: it has {listed} bytes, and {free} are free in {target.parent}")
    if listed is not None and packed is not None and listed > 2**27 and listed > 100 * packed:
        raise ValueError(f"{path} is refused: {packed} bytes would become {listed} (a decompression bomb)")
    fs.get_file(path, str(target))
    size = target.stat().st_size
    if listed is not None and size > listed:
        target.unlink()
        raise FileNotFoundError(f"{path} is refused: {listed} bytes were listed, and {size} came")


def _hash(listing: Any) -> str:
    """A hash of what a storage lists: names, sizes, times, checksums."""
    return hashlib.sha256(repr(listing).encode()).hexdigest()


def files_of_run(listing: dict[str, dict[str, Any]], run: str, local: bool) -> dict[str, str]:
    """The files of a run that are fetched: relative path in the run folder -> path in the listing.

    local: the listing is of a disk of this machine; links are not followed.

    Raises:
        ValueError: a name leads out of the folder, is not valid on every system, or differs from another by case alone.
    """
    paths, spellings, skipped = dict[str, str](), dict[str, str](), []
    for path, info in listing.items():
        name = path.removeprefix(f"{run}/")
        if name.endswith("/") and not info.get("size"):
            continue  # the placeholder of a folder in an object store
        problem = unsafe_reason(name) if path != name or not run else "it leads elsewhere"
        for parent in (name, *(name[: match.start()] for match in re.finditer("/", name))):
            other = spellings.setdefault(unicodedata.normalize("NFC", parent).casefold(), parent)
            problem = problem or (f"there is {other!r} too" if other != parent else "")
        is_link = local and Path(path).resolve() != Path(run).resolve() / name
        if is_link and not Path(path).resolve().is_relative_to(Path(run).resolve()) and not name.startswith("wandb/"):
            problem = problem or "it is a link that leads elsewhere"
        if problem:
            raise ValueError(f"{name!r} is refused: {problem}")
        if name.endswith(".part") or name == _STATE_FILE:
            continue
        if is_link or info.get("islink") or info.get("type", "file") != "file" or not _RUN_FILES.fullmatch(name):
            skipped.append(name)
        else:
            paths[name] = path
    if skipped:
        names = printable(", ".join(skipped[:3]))
        print(f"skipped, not files of a run: {names} ({len(skipped)} in all)", file=sys.stderr)
    return paths
