"""UsageError, the one-line error of a wrong command line; "did you mean" suggestions; tracebacks of your own frames."""

import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType


class UsageError(Exception):
    """A mistake on the command line or in a file that it names; printed in one line, with exit status 2."""

    def __init__(self, text: str) -> None:
        # A DataLoader's worker process sends its traceback along: `Caught UsageError in ...`.
        sent = re.search(rf"^[\w.]+\.{type(self).__name__}: (.*)", text, re.M) if text.startswith("Caught ") else None
        super().__init__(sent[1] if sent else text)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it."""
        return [f"{type(self).__name__}: {self}"]


class FileError(UsageError, ValueError):
    """A file of the data cannot be used. Where an item that cannot be read should do no harm, it is a ValueError."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion to append to an error, such as `; did you mean 'lenet'?`, or "" where nothing is close."""
    import difflib  # only mistakes pay for it

    simplified = {simplify(one): one for one in known}
    close = difflib.get_close_matches(simplify(name), simplified, n=1, cutoff=0.6)
    return f"; did you mean {simplified[close[0]]!r}?" if close else ""


def printable(text: str) -> str:
    """A text in one line, control characters as escapes: a name must not move the cursor or look like a line."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def escape_formula(text: str) -> str:
    """A cell of a table, with a ' in front where a spreadsheet would compute or run it; -1.5, -abc and @ada stay."""
    return f"'{text}" if re.match(r"[=\t\r]|[-+@](?![\w.:/ -]*\Z)", text) else text


def is_own_file(name: str) -> bool:
    """Whether a source file is the user's: none of the engine, of the interfaces, of Python or of a package."""
    import sysconfig

    root, path = Path(__file__).resolve().parent.parent, Path(name).resolve()
    ours = "engine main.py data/data_interface.py data/lightning_data_interface.py model/model_interface.py"
    not_own = [root / one for one in ours.split()]
    not_own += [Path(sysconfig.get_path(one)).resolve() for one in ("stdlib", "purelib", "platlib")]
    return not name.startswith("<") and not any(path.is_relative_to(one) for one in not_own)


def print_own_frames(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook`: a traceback with your own frames and the last one; with `python -X dev`, all of them.

    The traceback that a worker process of a DataLoader sent along is shortened likewise.
    """
    if kind is KeyboardInterrupt:  # outside training, which saves and says how to go on
        print("interrupted", file=sys.stderr)
        return
    if sys.flags.dev_mode or not issubclass(kind, Exception):
        sys.__excepthook__(kind, error, trace)
        return
    text, left_out = "".join(traceback.format_exception(kind, error, trace)), 0

    def shorten(frame: re.Match[str]) -> str:
        nonlocal left_out
        if not text.startswith("  File ", frame.end()) or is_own_file(frame[1]):
            return frame[0]
        left_out += 1
        return ""

    print(re.sub(r'  File "([^"\n]+)", line .*\n(?:    .*\n)*', shorten, text), end="", file=sys.stderr)
    if left_out:
        hint = "python -X dev main.py shows them"
        print(f"({left_out} frames that are not your own are left out: {hint})", file=sys.stderr)


def simplify(name: str) -> str:
    """A name without case and underscores: MyNet and my_net are the same."""
    return name.replace("_", "").lower()
