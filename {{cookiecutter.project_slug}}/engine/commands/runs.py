"""`runs`: list the runs, a line each, or remove some: `runs`, `runs remove version_3`, `runs prune --keep 5`."""

import math
import shutil
import sys
import time
from datetime import datetime
from typing import Any

from engine.checkpointing import run_lock, run_records
from engine.checkpointing.find_checkpoint import best_mode
from engine.checkpointing.run_records import RunRecord
from engine.cli.features_and_commands import CommandParser
from engine.errors import UsageError

_UNITS = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def main(argv: list[str]) -> None:
    """Lists runs, or removes some after a question; one that is running is never touched. It needs no torch.

    Raises: UsageError: no such run, a wrong flag, a run to remove that is running, or nobody to ask.
    """
    action = argv[0] if argv[:1] in (["remove"], ["prune"]) else "list"
    parser = CommandParser("runs [remove|prune]", __doc__)
    run_records.add_arguments(parser)
    parser.add_argument("--sort", metavar="COLUMN", help="by best (the best run first), age, size, epochs or any flag")
    if action != "list":
        parser.add_argument("--yes", action="store_true", help="do not ask")
    if action == "prune":
        parser.add_argument("--keep", type=int, required=True, help="how many: the newest, or the first by --sort")
    options = parser.parse_args(argv if action == "list" else argv[1:])
    if action == "remove" and not options.runs:
        raise UsageError("runs remove: name the runs to remove, such as version_3")
    records = _sort(run_records.find(options, "runs"), options.sort)
    if action == "prune":
        if options.keep < 0:
            raise UsageError(f"--keep {options.keep} should be at least 0")
        records = _superfluous(records if options.sort else records[::-1], options.keep)
    if action == "list":
        _print_table([_row(record) for record in records])
    elif records:
        _remove(records, options.yes)
    else:
        print("nothing to remove")


def _sort(records: list[RunRecord], column: str | None) -> list[RunRecord]:
    """The records in the order of a column, numbers before texts."""
    if column is None:
        return records
    if column == "best":
        chosen = {(record.monitor, best_mode(record.folder, record.monitor)) for record in records if record.monitor}
        if len(chosen) > 1:
            by = " and ".join(" ".join(one) for one in sorted(chosen))
            raise UsageError(f"--sort best: the runs were chosen by {by}: add --where monitor={min(chosen)[0]}")
        sign = -1 if chosen and chosen.pop()[1] == "max" else 1
        return sorted(records, key=lambda record: math.inf if record.best is None else sign * record.best)
    columns: dict[str, Any] = {"age": _age, "size": _size, "epochs": RunRecord.epochs}
    if column not in columns and not any(column in record.flags for record in records):
        raise UsageError(f"--sort {column}: there are best, {', '.join(columns)}, and the flags of the runs")

    def key(record: RunRecord) -> tuple[float, str]:
        value = columns[column](record) if column in columns else record.flags.get(column, "")
        try:
            return float(value), ""
        except (ValueError, TypeError):  # a text, or None
            return math.inf, str(value)

    return sorted(records, key=key)


def _superfluous(records: list[RunRecord], keep: int) -> list[RunRecord]:
    """The records behind the first `keep`, without the ones that have a name or are running."""
    stays = [record for record in records[keep:] if record.run_name or record.state.startswith("running")]
    if stays:
        print(f"{', '.join(record.folder.name for record in stays)} stay: they have a --run_name, or are running")
    return [record for record in records[keep:] if record not in stays]


def _remove(records: list[RunRecord], yes: bool) -> None:
    names = ", ".join(str(record.folder) for record in records)
    if running := [record for record in records if record.state.startswith("running")]:
        raise UsageError(f"runs: {running[0].folder} is {running[0].state}: nothing is removed")
    try:
        answer = "y" if yes else input(f"remove {names} ({_bytes(sum(map(_size, records)))})? [y/N] ")
        if answer.lower() not in ("y", "yes"):
            return print("nothing is removed")
    except EOFError:
        raise UsageError("runs: this is no terminal on which to ask whether to remove them: add --yes") from None
    for record in records:
        if record.folder.is_symlink():
            record.folder.unlink()
            continue
        run_lock.acquire(record.folder, "")  # so that nobody goes on with it meanwhile
        try:
            shutil.rmtree(record.folder)
        finally:
            run_lock.release()
        print(f"removed {record.folder}")


def _row(record: RunRecord) -> dict[str, str]:
    best = "" if record.best is None else f"{record.monitor} {record.best:.4g} (epoch {record.best_epoch})"
    return {
        "run": record.folder.name,
        "name": record.run_name,
        "network": record.flags.get("model_name", ""),
        "dataset": record.flags.get("dataset", ""),
        "epochs": "" if (epochs := record.epochs()) is None else str(epochs),
        "best": best,
        "age": next((f"{_age(record) // unit:.0f} {text}" for unit, text in _UNITS if _age(record) >= unit), "0 s"),
        "size": _bytes(_size(record)),
        "state": record.state,
    }


def _age(record: RunRecord) -> float:
    """Seconds since its latest start, or else since its folder was changed."""
    changed = record.folder.stat().st_mtime
    return max(0.0, time.time() - (datetime.fromisoformat(record.started).timestamp() if record.started else changed))


def _size(record: RunRecord) -> int:
    """Bytes of all its files."""
    return sum(path.lstat().st_size for path in record.folder.rglob("*") if path.is_file())


def _bytes(size: float) -> str:
    unit = next((unit for unit in ("B", "kB", "MB") if size < 1000 ** (1 + ("B", "kB", "MB").index(unit))), "GB")
    return f"{size / 1000 ** ('B', 'kB', 'MB', 'GB').index(unit):.3g} {unit}"


def _print_table(rows: list[dict[str, str]]) -> None:
    """Prints columns, without those that are empty; on a terminal, a line is cut at its width."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        print("  ".join(row[name].ljust(widths[name]) for name in columns).rstrip()[:width])
