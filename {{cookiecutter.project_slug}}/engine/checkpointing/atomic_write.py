"""Atomic writes of the files of a run (a temporary file, then a rename), appending of whole lines, reading of JSON."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.errors import UsageError, printable

_reported: set[Path] = set()  # the files of which `warn_if_unwritable` has said that they cannot be written


class WriteError(OSError):
    """A file that cannot be written; its text is one line: the file, the reason, the free space."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, whose file takes that place when the block ends.

    At every moment `path` is the old file or the new one; where the block fails, the new one is removed.

    Raises: WriteError: it cannot be written: the disk is full, for example.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with write_errors(path):
            yield part
            os.replace(part, path)
    finally:
        with suppress(OSError):  # a disk that has become read-only
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder_update(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder, whose files move to `folder` when the block ends; where it fails, none does.

    Raises: WriteError: it cannot be written: the disk is full, for example.
    """
    import tempfile

    with write_errors(folder), tempfile.TemporaryDirectory(".part", dir=folder, ignore_cleanup_errors=True) as part:
        yield Path(part)
        for path in sorted(Path(part).iterdir(), reverse=True):  # network.onnx after network.onnx.data
            os.replace(path, folder / path.name)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raises WriteError in place of what Python and torch raise where a file cannot be written."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, RuntimeError) and "inline_container.cc" not in why:  # torch's, of a full disk
            raise
        why = (isinstance(error, OSError) and error.strerror) or why
        import shutil  # here and not above: --help would wait for it

        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0
        raise WriteError(f"cannot write {path}: {why}; {free:.0f} MiB are free there") from None


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file: at every moment `path` is the old file or the new. Raises WriteError."""
    with atomic_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, a line an entry; what JSON has no form for as its text. Raises WriteError."""
    import json  # not needed for help

    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def append(path: Path, data: bytes) -> None:
    """Appends to a file, all of it or nothing. Raises OSError."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        raise


@contextmanager
def warn_if_unwritable(path: Path) -> Iterator[None]:
    """Writes a file that only shows something: where that fails, a line says so once, and the run goes on."""
    try:
        yield
    except OSError as error:
        if path.absolute() not in _reported:
            _reported.add(path.absolute())
            why = str(error) if isinstance(error, WriteError) else f"cannot write {path}: {error.strerror or error}"
            print(f"{printable(why)}; the run goes on", file=sys.stderr, flush=True)


def read_json(path: Path, default: Any) -> Any:
    """The content of a JSON file; `default`, whose type it should have, where there is none.

    Raises: UsageError: it is broken.
    """
    import json  # not needed for help

    if not path.exists():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UsageError(f"{path} is broken ({' '.join(str(error).split())}): mend it, or delete it") from None
    if not isinstance(value, type(default)):
        raise UsageError(f"{path} is broken: it should hold a {type(default).__name__}: mend it, or delete it")
    return value
