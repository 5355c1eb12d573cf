"""Errors of data/csv_table.py and data/text_lines.py about a file."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.errors import UsageError


def missing(path: Path, flags: str) -> UsageError:
    """The error where there is no file `path`, which `flags` name: it says which lie there, ten of them at most."""
    if not path.parent.is_dir():
        return UsageError(f"there is no {path}: no folder {path.parent} ({flags})")
    there = sorted(one.name for one in path.parent.iterdir() if one.is_file())
    more = f" and {len(there) - 10} more" if len(there) > 10 else ""
    return UsageError(f"there is no {path} ({flags}). {path.parent} has: {', '.join(there[:10]) or 'no file'}{more}")


def no_column(path: Path | str, name: object, known: Any) -> UsageError:
    """The error where a table has no such column. One of a single column may be cut up by another separator."""
    known = [str(one) for one in known]
    apart = [one for one in ("\t", ";", ",", "|") if len(known) == 1 and one in known[0]]
    hint = f". If {apart[0]!r} separates them: --separator {apart[0]!r}" if apart else ""
    return UsageError(f"{path} has no column {name!r}. It has: {', '.join(known)}{hint}")


def not_in(path: Path, encoding: str, error: Exception) -> UsageError:
    """The error where a text file could not be decoded, or a LookupError says that there is no such encoding."""
    if isinstance(error, LookupError):
        return UsageError(f"--encoding {encoding}: there is no such encoding")
    content = path.read_bytes()
    if content.startswith(b"PK"):
        return UsageError(f"{path} is a zip file, as Excel writes: save the table as CSV")
    marked = ["utf-16"] if content[:2] in (b"\xff\xfe", b"\xfe\xff") else []
    for other in (*marked, "utf-8", "gbk", "gb18030", "big5", "shift_jis", "cp1252"):
        with suppress(UnicodeError):
            content.decode(other)
            return UsageError(f"{path} is not {encoding}; it can be read as {other}: --encoding {other}")
    line = content.decode(encoding, "replace").partition("\ufffd")[0].count("\n") + 1
    return UsageError(f"{path} is not {encoding}, nor gbk, big5, shift_jis or cp1252: line {line} is damaged, or mixed")
