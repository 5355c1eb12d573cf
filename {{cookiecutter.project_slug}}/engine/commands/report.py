"""`report`: runs side by side: a table, curves, files for a spreadsheet and MATLAB."""

import argparse
import csv
import io
import math
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

from engine.atomic_write import replacing
from engine.checkpointing import run_folder
from engine.checkpointing.find_checkpoint import monitor_mode
from engine.cli import config_file
from engine.errors import UsageError, printable


class Run(NamedTuple):
    """What a run folder holds. flags: as text; metrics: a pandas table, a row a step, a column a metric; epochs: ended
    and measured; seconds: between the first and the last event of each of its TensorBoard files."""

    name: str
    flags: dict[str, str]
    metrics: Any
    epochs: int
    seconds: float


def main(argv: list[str]) -> None:
    """Reports on runs; it reads their folders alone and needs no network, no dataset and no torch.

    Raises:
        UsageError: no such run, an unknown flag, or what it writes with is not installed.
    """
    parser = argparse.ArgumentParser("main.py report", description=__doc__, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="version_N or a run folder (default: all runs)")
    parser.add_argument("--out", default="report", metavar="FOLDER", help="where the files go (default: report)")
    parser.add_argument("--default_root_dir", default=".", help="folder in which lightning_logs lies (default: .)")
    try:
        known, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(str(error).removeprefix("argument ")) from None
    if rest:
        raise UsageError(f"report: unknown flag {rest[0]}; there are --out and --default_root_dir")
    folders = find_runs(known.runs, run_folder.logs_root(known.default_root_dir))
    names = [folder.resolve().name for folder in folders]
    if len({*names}) < len(names):
        names = [str(folder) for folder in folders]
    try:
        runs = [run for folder, name in zip(folders, names, strict=True) if (run := read_run(folder, name))]
        if not runs:
            raise UsageError("report: none of the runs can be read")
        write(runs, Path(known.out))
    except ModuleNotFoundError as error:
        raise UsageError(f'report needs {error.name} too: pip install -e ".[report]"') from None
    print(known.out)


def find_runs(names: list[str], root: Path) -> list[Path]:
    """The run folders that names mean (`version_3` or a folder), by default all of `root`, in order of their number."""
    every = sorted((path for path in root.glob("version_*") if path.is_dir()), key=lambda path: (len(path.name), path))
    if not names and not every:
        raise UsageError(f"report: there is no run in {root}/ yet")
    folders = [root / name if re.fullmatch(r"version_\d+", name) else Path(name) for name in names]
    for name, path in zip(names, folders, strict=True):
        if not any(any(path.glob(pattern)) for pattern in ("config.yaml", "metrics.csv", "events.*")):
            available = ", ".join(path.name for path in every[-5:]) or "no run"
            raise UsageError(f"report: there is no run {name!r}; {root}/ has {available}")
    return list(dict.fromkeys(folders)) or every


def read_run(folder: Path, name: str) -> Run | None:
    """A run, from metrics.csv or, where there is none, from what TensorBoard has: every point of it.

    What cannot be read is said and left out: a line of metrics.csv, the flags, or the run, which then is None.
    """
    config, flags = folder / "config.yaml", dict[str, str]()
    try:
        if config.is_file():
            flags = {key: raw.text for key, raw in config_file.read(config, kept=True).items()}
    except UsageError as error:
        _say(f"the flags of {name} are left out: {error}")
    try:
        points = _csv_points(folder) if (folder / "metrics.csv").is_file() else _event_points(folder)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each reader has its own for a broken file
        _say(f"{folder} is left out: {type(error).__name__}: {' '.join(str(error).split())}")
        return None
    is_epoch = points["metric"] == "epoch"
    metrics = points[~is_epoch].groupby(["step", "metric"])["value"].last().unstack()
    ends = metrics[[metric for metric in metrics if _of_epoch(metric) and metric[:4] != "test"]].dropna(how="all")
    epoch = points[is_epoch].groupby("step")["value"].first().reindex(ends.index).max()  # the one that ended there
    seconds = sum(map(_seconds, folder.glob("events.out.tfevents.*")))
    return Run(name, flags, metrics, 0 if math.isnan(epoch) else int(epoch) + 1, seconds)


def _csv_points(folder: Path) -> Any:
    import pandas

    path, points, wrong = folder / "metrics.csv", list[tuple[int, str, float]](), 0
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            step = row.pop("step", None) or "none"
            values = {name: text for name, text in row.items() if text}
            try:
                numbers = [(range(2**53)[int(step)], printable(name), float(text)) for name, text in values.items()]
                points += (point for point in numbers if not math.isnan(point[2]))
            except (ValueError, TypeError, IndexError):  # also where a line has more cells than the first one
                wrong += 1
    if wrong:
        _say(f"{wrong} lines of {path} are left out: they are broken")
    return pandas.DataFrame(points, columns=["step", "metric", "value"])


def _say(line: str) -> None:
    print(f"report: {printable(line)}", file=sys.stderr)


def _event_points(folder: Path) -> Any:
    import pandas

    points: list[tuple[int, str, float]] = []
    if any(folder.glob("events.*")):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        for metric in events.Tags()["scalars"]:
            points += ((event.step, metric, event.value) for event in events.Scalars(metric))
    return pandas.DataFrame(points, columns=["step", "metric", "value"])


def _seconds(events: Path) -> float:
    """The time between the first and the last event of a file, each a record that begins with its time.

    A record: its length (8 bytes), a check sum (4), an Event (a tag byte, then the time as a double), a check sum (4).
    The file's own time stamps would be wrong in a copy.
    """
    times = []
    with events.open("rb") as file:
        while len(head := file.read(21)) == 21:
            length, tag, time = struct.unpack("<Q4xBd", head)
            times.append(time if tag == 9 else math.nan)
            file.seek(length - 9 + 4, os.SEEK_CUR)
    return max(times) - min(times) if times else 0.0


def _of_epoch(metric: str) -> bool:
    """Whether a metric is one of an epoch, not of a step or a setting."""
    return metric.startswith(("train_", "val_", "test_")) and not metric.endswith("_step")


def write(runs: list[Run], folder: Path) -> None:
    """Prints the table and writes all files; a package that is missing stops only the files that need it.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table = summary(runs)
        print(table.to_string(index=False, na_rep="", float_format="{:.4g}".format), flush=True)
        writers = {"curves.png": draw, "report.xlsx": write_sheets, "report.mat": write_arrays}
        with replacing(folder / "report.csv") as part:
            table.to_csv(part, index=False)
        for name, write_file in writers.items():
            write_file(runs, file := io.BytesIO())
            with replacing(folder / name) as part:
                part.write_bytes(file.getbuffer())
    except OSError as error:
        raise UsageError(f"--out {folder}: {error.strerror or error}") from None


def summary(runs: list[Run]) -> Any:
    """A row a run: name, network, dataset, the flags in which the runs differ, the best values, epochs, seconds."""
    import pandas

    names = dict.fromkeys(name for run in runs for name in run.flags)
    differ = [name for name in names if len({run.flags.get(name) for run in runs}) > 1]
    flags = [name for name in differ if name not in ("model_name", "dataset", "ckpt_path")]
    modes = {metric: monitor_mode(metric) for metric in _metrics(runs) if _of_epoch(metric)}
    rows = []
    for run in runs:
        row: dict[str, Any] = {
            "run": run.name,
            "network": run.flags.get("model_name", ""),
            "dataset": run.flags.get("dataset", ""),
        }
        row |= {name: run.flags.get(name, "") for name in flags}
        best = {metric: run.metrics[metric].agg(mode) for metric, mode in modes.items() if metric in run.metrics}
        row |= {f"{metric} ({mode})": best.get(metric) for metric, mode in modes.items()}
        rows.append(row | {"epochs": run.epochs, "seconds": round(run.seconds, 1)})
    return pandas.DataFrame(rows).map(_plain_cell).rename(columns=_plain_cell)


def _plain_cell(value: Any) -> Any:
    """A value of a table; of a text, one that no spreadsheet takes for a formula and no terminal for a command."""
    if not isinstance(value, str):
        return value
    is_formula = value[:1] in ("=", "+", "-", "@") and not re.fullmatch(r"[-+][\d.]+(e[-+]?\d+)?", value)
    return f"'{printable(value)}" if is_formula else printable(value)


def _metrics(runs: list[Run]) -> list[str]:
    return sorted({metric for run in runs for metric in run.metrics})


def curves(runs: list[Run], metric: str) -> Any:
    """A pandas table of a metric: a row a step, a column a run; empty where a run has no value."""
    import pandas

    columns = {_plain_cell(run.name): run.metrics[metric].dropna() for run in runs if metric in run.metrics}
    return (
        pandas.DataFrame(columns, columns=[_plain_cell(run.name) for run in runs], dtype=float)
        .rename_axis("step")
        .sort_index()
    )


def write_sheets(runs: list[Run], file: Any) -> None:
    """A sheet a metric; a sheet's name has at most 31 letters and none of []:*?/\\'."""
    import openpyxl  # noqa: F401  # pandas would ask for it with other words
    import pandas

    with pandas.ExcelWriter(file, engine="openpyxl") as writer:
        summary(runs).to_excel(writer, sheet_name="runs", index=False)
        for number, metric in enumerate(_metrics(runs)):
            name = re.sub(r"[\[\]:*?/\\']", "_", metric) or "_"
            curves(runs, metric).to_excel(writer, sheet_name=name if len(name) <= 31 else f"{name[:27]}_{number}")


def write_arrays(runs: list[Run], file: Any) -> None:
    """`runs`, a cell a name, and a struct a metric: `step` (S x 1) and `value` (S x runs), NaN for none."""
    import numpy as np
    from scipy.io import savemat

    arrays: dict[str, Any] = {"runs": np.array([run.name for run in runs], dtype=object)}
    for metric in _metrics(runs):
        name = re.sub(r"^(?![A-Za-z])", "m_", re.sub(r"\W", "_", metric))[:63]  # what MATLAB takes for a name
        frame = curves(runs, metric)
        arrays[name] = {"step": frame.index.to_numpy(float), "value": frame.to_numpy(float)}
    savemat(file, arrays, oned_as="column", long_field_names=True)


def draw(runs: list[Run], file: Any) -> None:
    """A panel for each metric that some run has two points of, with the curves of all runs."""
    from matplotlib.figure import Figure

    frames = {metric: frame for metric in _metrics(runs) if (frame := curves(runs, metric)).count().max() > 1}
    columns = max(1, math.ceil(math.sqrt(len(frames))))
    rows = max(1, math.ceil(len(frames) / columns))
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    for number, (metric, frame) in enumerate(frames.items(), 1):
        axes = figure.add_subplot(rows, columns, number, xlabel="step")
        axes.set_title(metric, parse_math=False)
        for name in frame:  # a run without points keeps its colour in every panel
            axes.plot(frame[name].dropna(), label=name)
    if frames:
        legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.savefig(file, dpi=120, format="png")
