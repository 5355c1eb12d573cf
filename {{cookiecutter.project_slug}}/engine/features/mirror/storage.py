"""Runs at an address of fsspec (s3://, gs://, file:// ...): claim a place there, fetch one. No torch here."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.checkpointing import run_folder
from engine.checkpointing.file_names import unsafe
from engine.errors import UsageError
from engine.features.mirror.run_files import wanted

MARKER = "mirror.txt"  # in a run folder: its address, and a word that only who writes there now knows
_FETCHED = "fetched.txt"  # in a run folder: the state of the address that it was fetched from


def connect(url: str, flag: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. It remembers no listing, for others write there too.

    Raises:
        UsageError: fsspec does not know the protocol, its package is not installed, or finds no keys.
    """
    import fsspec  # only an address pays for it

    with one_line(f"--{flag} {url}"):
        try:
            files, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            extra = ': pip install -e ".[s3]"' if url.startswith("s3") else ""
            raise UsageError(f"--{flag} {url}: {reason(error)}{extra}") from None
    return files, path.rstrip("/")


def is_object_store(files: Any) -> bool:
    """Whether what is put there appears whole or not at all, and there are no folders to be made (s3, gs, az ...)."""
    from fsspec.asyn import AsyncFileSystem

    return isinstance(files, AsyncFileSystem)


def is_folder(files: Any, path: str, folder: Path) -> bool:
    """Whether a path is a folder of this machine."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(files, LocalFileSystem) and Path(path).resolve() == folder.resolve()


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
    """Each storage has exceptions of its own, with no base in common: any of them is said in one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {reason(error)}") from None


def claim(files: Any, base: str, folder: Path) -> str:
    """The path below `base` where the run in `folder` is mirrored: the one it had, else its name or the next number.

    A place that another machine has gone on with in the meantime is not taken back.
    """
    kept = (folder / MARKER).read_text(encoding="utf-8") if (folder / MARKER).exists() else ""
    path = files._strip_protocol(kept.partition("\n")[0]) if kept else ""
    base_of, _, own = path.rpartition("/")
    if kept and base_of == base and not unsafe(own) and _read(files, f"{path}/{MARKER}") == kept:
        _mark(files, path, folder, mode="overwrite")
        return path
    taken, name = set(_names(files, base)), folder.name
    while True:
        with contextlib.suppress(FileExistsError):
            if name not in taken:
                _mark(files, f"{base}/{name}", folder, mode="create")
                return f"{base}/{name}"
        taken.add(name)
        numbers = (int(match[1]) for one in taken if (match := re.fullmatch(r"version_(\d+)", one)))
        name = f"version_{max(numbers, default=-1) + 1}"


def holds(files: Any, path: str, folder: Path) -> bool:
    """Whether a place is still this run's, and no other machine has gone on with it."""
    return _read(files, f"{path}/{MARKER}") == (folder / MARKER).read_text(encoding="utf-8")


def _mark(files: Any, path: str, folder: Path, mode: str) -> None:
    text = f"{files.unstrip_protocol(path)}\n{uuid.uuid4().hex}\n"
    if not is_object_store(files):
        files.makedirs(path, exist_ok=True)
    files.pipe_file(f"{path}/{MARKER}", text.encode(), mode=mode)
    (folder / MARKER).write_text(text, encoding="utf-8")


def _read(files: Any, path: str) -> str:
    try:
        return files.cat_file(path).decode()
    except FileNotFoundError:
        return ""


def fetch(url: str, root: Path, flag: str) -> Path:
    """A run, or a file, on this machine: a run in a folder of its own name below `root`, or of the next free one.

    What was fetched before and has not changed there is not fetched again. Of the processes of a machine one fetches.

    Raises:
        UsageError: it is not there, or cannot be fetched.
    """
    files, path = connect(url, flag)
    run, checkpoint = path, ""
    with one_line(f"--{flag} {url}"):
        if files.isfile(path):
            checkpoint = path.rpartition("/")[2]
            run = path.rpartition("/checkpoints/")[0]
            if not run or not files.isfile(f"{run}/config.yaml"):
                return _fetch_file(files, path, root)
        if not files.isfile(f"{run}/config.yaml"):
            raise UsageError(f"--{flag} {url}: there is no such file or run; {_what_is_there(files, path)}")
        folder = _fetch_run(files, run, root, url)
    return folder / "checkpoints" / checkpoint if checkpoint else folder


def _what_is_there(files: Any, path: str) -> str:
    above = path if _names(files, path) else path.rpartition("/")[0]
    return f"{files.unstrip_protocol(above)} has {', '.join(_names(files, above)[-8:]) or 'nothing'}"


def _names(files: Any, path: str) -> list[str]:
    try:
        return sorted(one.rstrip("/").rpartition("/")[2] for one in files.ls(path, detail=False))
    except FileNotFoundError:
        return []


def _fetch_file(files: Any, path: str, root: Path) -> Path:
    """A file alone, as of somebody else's weights."""
    info = files.info(path)
    name = f"{_state(info)[:8]}-{path.rpartition('/')[2]}"
    if wrong := unsafe(name):
        raise ValueError(f"{name[9:]!r} is refused: {wrong}")
    target = root / "fetched" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        _get(files, path, info, part)
        os.replace(part, target)
    return target


def _fetch_run(files: Any, run: str, root: Path, url: str) -> Path:
    state = _state(files.find(run, detail=True))
    own_rank = next((int(os.environ[name]) for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in os.environ), 0)
    deadline = time.monotonic() + 3600
    while own_rank and not _fetched(root, state) and time.monotonic() < deadline:
        time.sleep(0.2)  # another process of this machine is at it
    if folder := _fetched(root, state):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    part = root / f".{state[:8]}-{socket.gethostname()}.part"
    for last_try in (False, False, True):  # a checkpoint may be replaced there in the meantime
        shutil.rmtree(part, ignore_errors=True)
        try:
            _download(files, run, part)
            break
        except FileNotFoundError:
            if last_try:
                raise
    (part / _FETCHED).write_text(state, encoding="utf-8")
    if folder := _fetched(root, state):  # another machine that writes to the same disk was faster
        shutil.rmtree(part)
        return folder
    folder = root / run.rpartition("/")[2]
    try:
        if unsafe(folder.name):
            raise FileExistsError
        folder.mkdir()
    except FileExistsError:
        folder = run_folder.create(root)
    os.rename(part, folder)  # whole, in place of the empty one
    print(f"fetched {url} to {folder}", file=sys.stderr)
    return folder


def _download(files: Any, run: str, to: Path) -> None:
    """All files of a run, last.ckpt first: of the rows and so on that it counts on, more may be there, but not less."""
    from fsspec.implementations.local import LocalFileSystem

    listing = files.find(run, detail=True)
    held = wanted(listing, run, isinstance(files, LocalFileSystem))
    for inside in sorted(held, key=lambda one: not one.endswith("/last.ckpt")):
        (to / inside).parent.mkdir(parents=True, exist_ok=True)
        _get(files, held[inside], listing[held[inside]], to / inside)


def _get(files: Any, path: str, info: Any, to: Path) -> None:
    """A file, and no more of it than was told: it may have been replaced in the meantime, or not be what it seems.

    Raises:
        FileNotFoundError: it is larger now; what was told of is not there.
    """
    files.get_file(path, str(to))
    told, came = info.get("size"), to.stat().st_size
    if told is not None and came > told:
        to.unlink()
        raise FileNotFoundError(f"{path} is refused: {told} bytes were told, and {came} came")


def _fetched(root: Path, state: str) -> Path | None:
    found = (path.parent for path in root.glob(f"*/{_FETCHED}") if path.read_text(encoding="utf-8") == state)
    return next((folder for folder in found if folder.suffix != ".part"), None)


def _state(listing: Any) -> str:
    """A word for what a storage tells of files: sizes, times, checksums."""
    return hashlib.sha256(repr(listing).encode()).hexdigest()
