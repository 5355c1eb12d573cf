"""Keeps a run alive whose standard output or error is closed, or is a file on a full disk."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


def is_terminal() -> bool:
    """Whether standard output is a terminal, or a notebook's; it may be None, closed, or of a kind of its own."""
    try:
        return bool(sys.stdout.isatty()) or is_notebook()
    except (AttributeError, ValueError):
        return False


def is_notebook() -> bool:
    """Whether this is the kernel of a notebook, whose output is no terminal and takes a progress bar all the same."""
    return hasattr(sys.stdout, "pub_thread")  # ipykernel's stream has one


@contextmanager
def ignore_output_errors() -> Iterator[None]:
    """While it lasts, what standard output and error cannot take is dropped instead of ending the run."""
    for number in range(3):  # or the next file that is opened gets the number, and what is printed
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _SafeStream(sys.stdout), _SafeStream(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _SafeStream):
                stream.drop_rest()
        sys.stdout, sys.stderr = before


class _SafeStream:
    """A text stream whose errors are ignored."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # gone, full, closed
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode("ascii", "backslashreplace").decode())
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def drop_rest(self) -> None:
        """Drops what is still in the buffer, for which Python would end with status 120."""
        with suppress(ValueError):
            try:
                self._stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
