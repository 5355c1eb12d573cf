"""The remote side of `--mirror`: the file system of an address, and whose a run folder there is.

No torch here, and fsspec where it is used: it is slow to import.
"""

import contextlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.checkpointing.atomic_write import write_atomically
from engine.checkpointing.safe_file_names import unsafe_reason
from engine.cli.credentials import hide
from engine.errors import UsageError, printable

_OWNER_FILE = "mirror.txt"  # here and there: the address, and a token that only the machine that writes there has


def connect(url: str, flag: str) -> tuple[Any, str]:
    """The fsspec file system of an address, without a listing cache, and the path in it. flag: for errors.

    Raises: UsageError: fsspec does not know the protocol, its package is not installed, or there are no credentials.
    """
    import fsspec

    with one_line_errors(f"--{flag} {url}"):
        try:
            fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            install = ': pip install -e ".[s3]"' if url.startswith("s3") else ""
            raise UsageError(f"--{flag} {url}: {one_line(error)}{install}") from None
    return fs, path.rstrip("/")


def is_object_store(fs: Any) -> bool:
    """Whether uploads are atomic and there are no folders to create (s3, gs, az ...)."""
    from fsspec.asyn import AsyncFileSystem

    return isinstance(fs, AsyncFileSystem)


def is_local(fs: Any) -> bool:
    """Whether it is a disk of this machine."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def one_line(error: BaseException) -> str:
    """The message of an exception in one line, without credentials."""
    return printable(hide(" ".join(str(error).split()))) or type(error).__name__


@contextlib.contextmanager
def one_line_errors(prefix: str) -> Iterator[None]:
    """Turns any exception into a UsageError: each storage has its own exceptions, without a common base class."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{prefix}: {one_line(error)}") from None


def claim(fs: Any, base: str, run_dir: Path) -> str:
    """The remote path below `base` to mirror `run_dir` to: its previous one, or else its name or the next number.

    A remote run folder that another machine has resumed from in the meantime is not taken back.
    """
    owner_file = run_dir / _OWNER_FILE
    token = owner_file.read_text(encoding="utf-8") if owner_file.exists() else ""
    path = fs._strip_protocol(token.partition("\n")[0]) if token else ""
    parent, _, name = path.rpartition("/")
    if token and parent == base and not unsafe_reason(name) and is_owner(fs, path, run_dir):
        _write_token(fs, path, run_dir, mode="overwrite")
        return path
    taken, name = set(list_names(fs, base)), run_dir.name
    while True:
        with contextlib.suppress(FileExistsError):
            if name not in taken:
                _write_token(fs, f"{base}/{name}", run_dir, mode="create")
                return f"{base}/{name}"
        taken.add(name)
        numbers = [int(match[1]) for other in taken if (match := re.fullmatch(r"version_(\d+)", other))]
        name = f"version_{max(numbers, default=-1) + 1}"


def is_owner(fs: Any, path: str, run_dir: Path) -> bool:
    """Whether a remote run folder still belongs to `run_dir`: no other machine has resumed from it."""
    try:
        return fs.cat_file(f"{path}/{_OWNER_FILE}").decode() == (run_dir / _OWNER_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def _write_token(fs: Any, path: str, run_dir: Path, mode: str) -> None:
    token = f"{fs.unstrip_protocol(path)}\n{uuid.uuid4().hex}\n"
    if not is_object_store(fs):
        fs.makedirs(path, exist_ok=True)
    fs.pipe_file(f"{path}/{_OWNER_FILE}", token.encode(), mode=mode)
    write_atomically(run_dir / _OWNER_FILE, token)


def list_names(fs: Any, path: str) -> list[str]:
    """The sorted names in a folder; [] where there is none."""
    try:
        return sorted(child.rstrip("/").rpartition("/")[2] for child in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []
