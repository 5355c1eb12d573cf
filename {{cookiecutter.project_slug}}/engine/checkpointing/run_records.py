"""RunRecord: flags, state and best checkpoint of a run, read from its folder; and the runs that filters select."""

import argparse
import csv
import operator
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from engine.checkpointing import run_folder, run_lock
from engine.checkpointing.atomic_write import read_json
from engine.checkpointing.find_checkpoint import best_checkpoint
from engine.checkpointing.monitor_mode import file_name
from engine.cli.type_conversion import COMPARISONS
from engine.errors import UsageError, nearest, printable

_COMPARE = {"=": operator.eq, **{sign: compare for sign, (compare, _) in COMPARISONS.items()}}


class RunRecord(NamedTuple):
    """A run, as its folder tells.

    flags: as text. state: running, done, stopped by SIGTERM, failed: ..., or killed; "" where no start is written down.
    started: of its latest start, in ISO 8601, or "". monitor, best, best_epoch: the metric by which the best
    checkpoint was chosen, its value and its epoch; "", None and None where there is none.
    """

    folder: Path
    flags: dict[str, str]
    state: str
    started: str
    monitor: str
    best: float | None
    best_epoch: int | None

    @property
    def run_name(self) -> str:
        """Its --run_name, or ""."""
        name = self.flags.get("run_name", "none")
        return "" if name in ("none", "null") else name

    @property
    def tags(self) -> set[str]:
        """Its --tags."""
        return {tag.strip(" '\"") for tag in self.flags.get("tags", "").strip("[]").split(",")} - {""}

    def epochs(self) -> int | None:
        """The number of epochs in metrics.csv that have ended and been measured; None where there is no such file."""
        with suppress(FileNotFoundError), (self.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = (row for row in csv.DictReader(file) if any(row[name] for name in row if is_of_epoch(name)))
            return max((int(row["epoch"]) + 1 for row in rows if (row.get("epoch") or "").isdigit()), default=0)
        return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which runs are meant."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="version_N, a --run_name or a run folder (default: all)")
    parser.add_argument("--dataset", help="runs on this dataset only")
    split = partial(str.split, sep=",")
    parser.add_argument("--tags", type=split, default=[], help="runs with all of these tags only")
    parser.add_argument("--where", action="append", default=[], metavar="FLAG<VALUE", help='only such runs: "lr<0.01"')
    parser.add_argument("--default_root_dir", default=".", help="folder that contains lightning_logs/ (default: .)")


def find(options: argparse.Namespace, action: str) -> list[RunRecord]:
    """The runs that the arguments mean, in order of their number or as they are named.

    Raises: UsageError: no such run, no such flag, or nothing to compare with.
    """
    root = run_folder.logs_root(options.default_root_dir)
    every = run_folder.run_folders(root)
    if not options.runs and not every:
        raise UsageError(f"{action}: there is no run in {root}/ yet")
    folders = []
    for name in options.runs:
        named = run_folder.find_named(name, root)
        folder = root / name if re.fullmatch(r"version_\d+", name) else named[0] if named else Path(name)
        if not any(any(folder.glob(pattern)) for pattern in ("config.yaml", "metrics.csv", "events.*")):
            raise UsageError(f"{action}: there is no run {name!r}{run_folder.known_runs(name, root)}")
        folders.append(folder)
    records = [read(folder) for folder in dict.fromkeys(folders) or every]
    tests = [_condition(text, records) for text in options.where]
    wanted = [record for record in records if options.dataset in (None, record.flags.get("dataset"))]
    wanted = [record for record in wanted if record.tags.issuperset(options.tags)]
    wanted = [record for record in wanted if all(test(record) for test in tests)]
    if not wanted:
        raise UsageError(f"{action}: none of the {len(records)} runs matches")
    return wanted


def read(folder: Path) -> RunRecord:
    """Reads a run folder; a file that cannot be read is named, and left out."""
    flags, entries = dict[str, str](), list[dict[str, Any]]()
    try:
        flags = run_folder.kept_flags(folder)
        entries = read_json(folder / "environment.json", [])
    except UsageError as error:
        print(f"the flags of {folder.name} are left out: {printable(str(error))}", file=sys.stderr)
    last = entries[-1] if entries else {}
    holder = run_lock.holder(folder)
    state = last.get("ended") or (f"running ({holder})" if holder else "killed" if last else "")
    monitor, best, epoch = best_checkpoint(folder)
    if file_name(flags.get("monitor", "")) == monitor:
        monitor = flags["monitor"] if monitor else ""  # val/loss is val_loss in the name of a file
    return RunRecord(folder, flags, state, last.get("started", ""), monitor, best, epoch)


def without_duplicates(values: dict[str, float]) -> dict[str, float]:
    """Metrics by name: `loss` alone of what Lightning has as loss, loss_step and loss_epoch."""
    doubles = {f"{name}_{kind}" for name in values for kind in ("step", "epoch")}
    return {name: value for name, value in values.items() if name not in doubles}


def is_of_epoch(metric: Any, stages: str = "train|val") -> bool:
    """Whether the name of a metric is that of one over a whole epoch, and no step or setting."""
    return re.match(f"({stages})[_/](?!.*_step$)", metric or "") is not None


def _condition(text: str, records: list[RunRecord]) -> Any:
    """A function of a record: whether a condition such as `lr<0.01` is true of it; numbers are compared as numbers."""
    if not (match := re.fullmatch(r"\s*([\w/]+)\s*(<=|>=|!=|=|<|>)=?\s*(.*?)\s*", text)):
        raise UsageError(f"--where {text}: expected a flag, one of {' '.join(_COMPARE)}, and a value")
    name, sign, wanted = match.groups()
    if not any(name in values for values in map(_values, records)):
        known = {flag for record in records for flag in _values(record)}
        raise UsageError(f"--where {text}: no run has a flag or metric {name!r}{nearest(name, known)}")

    def test(record: RunRecord) -> bool:
        value = _values(record).get(name)
        if value is None:
            return False
        try:
            return bool(_COMPARE[sign](float(value), float(wanted)))
        except ValueError:
            if "<" in sign or ">" in sign:
                return False  # none, or a text
            return bool(_COMPARE[sign](str(value), wanted))

    return test


def _values(record: RunRecord) -> dict[str, Any]:
    """The values that `--where` compares: the flags, the state, and the monitored metric of the best checkpoint."""
    return record.flags | {"state": record.state.partition(" ")[0].rstrip(":")} | {record.monitor: record.best}
