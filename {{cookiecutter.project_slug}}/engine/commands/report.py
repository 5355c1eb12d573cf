"""`report`: compare runs: a table, curves, files for a spreadsheet and MATLAB."""

import csv
import html
import io
import math
import os
import re
import shutil
import struct
import sys
import textwrap
from bisect import bisect_left
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from engine.checkpointing import run_folder, run_records
from engine.checkpointing.atomic_write import atomic_file, read_json
from engine.checkpointing.monitor_mode import given_mode, known_mode
from engine.checkpointing.run_records import RunRecord
from engine.cli.features_and_commands import CommandParser
from engine.errors import UsageError, escape_formula, nearest, printable
from engine.logging import figures, html_page

_MAX_POINTS = 2000  # of a curve of the page, about
_WHAT = ("run_name", "network", "dataset")  # columns that say what a run is
_of_epoch = partial(run_records.is_of_epoch, stages="train|val|test")


class Run(NamedTuple):
    """What a run folder holds.

    metrics: a pandas table, a row a step, a column a metric; epoch_of: the epoch of each step; epochs: ended and
    measured; seconds: between the first and the last event of each of its TensorBoard files.
    """

    name: str
    record: RunRecord
    metrics: Any
    epoch_of: Any
    epochs: int
    seconds: float


def main(argv: list[str]) -> None:
    """Reports on runs; it reads their folders alone and needs no network, no dataset and no torch.

    Raises: UsageError: no such run, an unknown flag, or what it writes with is not installed.
    """
    parser = CommandParser("report", __doc__)
    run_records.add_arguments(parser)
    parser.add_argument("--out", default="report", metavar="FOLDER", help="where the files go (default: report)")
    parser.add_argument("--html", action="store_true", help="also write one HTML page: table, curves, pictures, flags")
    parser.add_argument("--columns", metavar="NAME,...", help="print these columns, or all (default: those that fit)")
    options = parser.parse_args(argv)
    records = run_records.find(options, "report")
    names = [record.folder.resolve().name for record in records]
    if len({*names}) < len(names):
        names = [str(record.folder) for record in records]
    try:
        runs = [run for record, name in zip(records, names, strict=True) if (run := read_run(record, name))]
        if not runs:
            raise UsageError("report: none of the runs can be read")
        write(runs, Path(options.out), options.html, options.columns)
    except ModuleNotFoundError as error:
        raise UsageError(f'report needs {error.name} too: pip install -e ".[report]"') from None
    print(options.out)


def read_run(record: RunRecord, name: str) -> Run | None:
    """A run, from metrics.csv or, where there is none, from what TensorBoard or else metrics.json has.

    What cannot be read is said and left out: a line of metrics.csv, or the run, which then is None.
    """
    folder = record.folder
    try:
        points = _csv_points(folder) if (folder / "metrics.csv").is_file() else _event_points(folder)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each reader has its own for a broken file
        _say(f"{folder} is left out: {type(error).__name__}: {' '.join(str(error).split())}")
        return None
    is_epoch = points["metric"] == "epoch"
    metrics = points[~is_epoch].groupby(["step", "metric"])["value"].last().unstack()
    epoch_of = 1 + points[is_epoch].groupby("step")["value"].first()  # the one that ended there
    ends = metrics[[metric for metric in metrics if run_records.is_of_epoch(metric)]].dropna(how="all")
    epoch = epoch_of.reindex(ends.index).max()
    seconds = sum(map(_seconds, run_folder.event_files(folder)))
    return Run(name, record, metrics, epoch_of, 0 if math.isnan(epoch) else int(epoch), seconds)


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
        _say(f"{path}: left out {wrong} of its lines, which are broken")
    return pandas.DataFrame(points, columns=["step", "metric", "value"])


def _say(line: str) -> None:
    print(f"report: {printable(line)}", file=sys.stderr)


def _event_points(folder: Path) -> Any:
    import pandas

    files = run_folder.event_files(folder)
    measured = {} if files else read_json(folder / "metrics.json", {})  # of a run that trained nothing
    points = [(0, name, value) for name, value in measured.items()]
    if files:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(files[0].parent), size_guidance={"scalars": 0}).Reload()
        names = events.Tags()["scalars"]
        epochs = events.Scalars("epoch") if "epoch" in names else []
        times = [event.wall_time for event in epochs]
        for name in names:
            found, metric = events.Scalars(name), name.removeprefix("by_epoch/")
            if metric == name:
                points += ((event.step, name, event.value) for event in found)
            elif metric not in names:  # of --x_axis epoch: the step is that of `epoch`, which is written right after it
                places = ((bisect_left(times, event.wall_time), event.value) for event in found)
                points += ((epochs[place].step, metric, value) for place, value in places if place < len(epochs))
    return pandas.DataFrame(points, columns=["step", "metric", "value"])


def _seconds(events: Path) -> float:
    """The time between the first and the last event of a file, whose own time stamps would be wrong in a copy.

    A record: its length (8 bytes), a check sum (4), an Event (a tag byte, then the time as a double), a check sum (4).
    Read so, histograms and pictures are skipped, not parsed.
    """
    times = list[float]()
    with events.open("rb") as file:
        while len(head := file.read(21)) == 21:
            length, tag, time = struct.unpack("<Q4xBd", head)
            times += [time] if tag == 9 else []  # 9: the field 1, a double
            file.seek(length - 9 + 4, os.SEEK_CUR)
    return max(times) - min(times) if times else 0.0


def write(runs: list[Run], folder: Path, page: bool, columns: str | None) -> None:
    """Prints the table and writes all files; those written before a missing package is needed stay.

    Raises: UsageError: the folder cannot be written, or there is no such column.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table = summary(runs)
        width = shutil.get_terminal_size((10**6, 0)).columns  # of a file or a pipe, any
        asked = [*table] if columns == "all" else columns.split(",") if columns else []
        if unknown := [name for name in asked if name not in table]:
            raise UsageError(f"--columns {unknown[0]}: there are {', '.join(table)}{nearest(unknown[0], table)}")
        _print_table(table, asked or _telling_columns(table, runs, width), width)
        writers = {"report.xlsx": write_sheets, "report.mat": write_arrays}
        writers |= {"report.html": write_page} if page else {}
        with atomic_file(folder / "report.csv") as part:
            table.to_csv(part, index=False)
        figures.write_png(folder / "curves.png", figures.render(partial(draw, runs)))
        for name, write_file in writers.items():
            write_file(runs, file := io.BytesIO())
            with atomic_file(folder / name) as part:
                part.write_bytes(file.getbuffer())
    except OSError as error:
        raise UsageError(f"--out {folder}: {error.strerror or error}") from None


def _print_table(table: Any, shown: list[str], width: int) -> None:
    """Prints some columns of the summary, in blocks where they are wider than `width`, and how many more there are."""
    some = table[["run", *(name for name in table if name in shown and name != "run")]]
    some = some.set_index("run").rename_axis(index=None, columns="run")  # repeated in each block
    print(some.to_string(na_rep="", float_format="{:.4g}".format, line_width=width))
    if more := [name for name in table if name not in (*some, "run")]:
        line = f"and {len(more)} more: --columns all, or some of {', '.join(more)}"
        print(textwrap.shorten(line, width, placeholder=" ..."))


def _telling_columns(table: Any, runs: list[Run], width: int) -> list[str]:
    """The columns that fit, the most telling first: what the runs are, what they were chosen by, what differs."""
    flags = [name for name in _differing(runs) if name in table and name not in (*_WHAT, "tags", "notes")]
    flags.sort(key=lambda name: ((table[name] == "").sum(), -table[name].nunique()))
    what = [name for name in _WHAT if name in table and table[name].nunique() > 1]
    monitors = [_monitor(run) for run in runs]
    measured = [name for name in table if re.match("(val|test)[_/]", name)]
    order = dict.fromkeys([*what, *monitors, *flags[:3], "epoch", *measured, *flags, *table])
    shown, free = list[str](), width - 2 - table["run"].str.len().max()
    for name in (name for name in order if name in table and name != "run"):
        lines = table[[name]].to_string(na_rep="", float_format="{:.4g}".format, index=False).split("\n")
        if (needed := 2 + max(map(len, lines))) <= free:
            free -= needed
            shown.append(name)
    return shown


def summary(runs: list[Run]) -> Any:
    """A row a run: its name, network, dataset, the flags in which the runs differ, the values of the chosen checkpoint
    and its epoch, epochs, seconds."""
    import pandas

    flags = [name for name in _differing(runs) if name not in ("model_name", "dataset")]
    metrics = [metric for metric in _metrics(runs) if _of_epoch(metric)]
    rows = []
    for run in runs:
        row: dict[str, Any] = {"run": run.name, "network": run.record.flags.get("model_name", "")}
        row |= {"dataset": run.record.flags.get("dataset", "")}
        row |= {name: run.record.flags.get(name, "") for name in flags}
        values = chosen_values(run)
        row |= {"epoch": values.get("epoch", "")} | {metric: values.get(metric) for metric in metrics}
        rows.append(row | {"epochs": run.epochs, "seconds": round(run.seconds, 1)})
    return pandas.DataFrame(rows).map(_plain_cell).rename(columns=_plain_cell)


def chosen_values(run: Run) -> dict[str, float]:
    """The metrics of the best checkpoint, with its "epoch", and the latest of the test; without a checkpoint,
    those of the best validation; of a run that trained nothing, all."""
    latest = {metric: run.metrics[metric].dropna().iloc[-1] for metric in run.metrics.dropna(axis=1, how="all")}
    if run.epoch_of.empty:
        return latest
    values = {metric: latest[metric] for metric in latest if metric.startswith("test")}
    monitor = _monitor(run)
    if monitor == "epoch":  # where no metric was logged, the latest one counts as the best
        monitored = run.epoch_of[run.epoch_of == run.record.best_epoch]
        monitored = -monitored.index.to_series()  # its last row
    elif monitor not in run.metrics:
        return values
    else:
        monitored = run.metrics[monitor].dropna()
        mode = given_mode(run.record.folder) or known_mode(monitor)
        if run.record.best is not None:
            monitored = monitored[run.epoch_of.reindex(monitored.index) == run.record.best_epoch]
            monitored = (monitored - run.record.best).abs()  # the checkpoint's name has fewer digits
        elif mode is None:
            return values  # nobody knows which is the best
        elif mode == "max":
            monitored = -monitored
    if monitored.empty:
        return values
    step = monitored.idxmin()
    epoch = run.epoch_of[step]
    of_epoch = run.metrics[(run.epoch_of.reindex(run.metrics.index) == epoch)]
    for metric in (metric for metric in run.metrics if _of_epoch(metric) and metric not in values):
        rows = of_epoch[metric].dropna() if metric.startswith("train") else run.metrics.loc[[step], metric].dropna()
        values |= {metric: rows.iloc[-1]} if len(rows) else {}
    return values | {"epoch": int(epoch)}


def _monitor(run: Run) -> str:
    """The metric by which its best checkpoint is chosen."""
    return run.record.monitor or run.record.flags.get("monitor", "val_loss")


def _differing(runs: list[Run]) -> list[str]:
    """The flags in which the runs that have them differ: another network lacks many."""
    names = dict.fromkeys(name for run in runs for name in run.record.flags)
    values = {name: {run.record.flags[name] for run in runs if name in run.record.flags} for name in names}
    return [name for name in names if len(values[name]) > 1 and name != "ckpt_path"]


def labels(runs: list[Run]) -> list[str]:
    """What the legend calls each run: its --run_name, or else the flags that most runs have otherwise, or its name."""
    flags = [name for name in _differing(runs) if name not in ("run_name", "tags", "notes")]
    counts = {flag: Counter(run.record.flags.get(flag) for run in runs).most_common(1)[0] for flag in flags}
    usual = {flag: value for flag, (value, count) in counts.items() if count > len(runs) / 2}
    texts = []
    for run in runs:
        own = [flag for flag in flags if flag in run.record.flags and run.record.flags[flag] != usual.get(flag)]
        differ = ", ".join(f"{flag} {run.record.flags[flag]}" for flag in own)
        texts.append(printable(run.record.run_name or textwrap.shorten(differ, 60, placeholder=" ...") or run.name))
    unique = [text for text in texts if texts.count(text) == 1]
    pairs = zip(texts, runs, strict=True)
    return [text if text in (*unique, run.name) else f"{text} ({run.name})" for text, run in pairs]


def _plain_cell(value: Any) -> Any:
    """A value of a table; of a text, one that no spreadsheet takes for a formula and no terminal for a command."""
    return escape_formula(printable(value)) if isinstance(value, str) else value


def _metrics(runs: list[Run]) -> list[str]:
    return sorted({metric for run in runs for metric in run.metrics})


def curves(runs: list[Run], metric: str) -> Any:
    """A pandas table of a metric: a row a step, a column a run; empty where a run has no value."""
    import pandas

    columns = {_plain_cell(run.name): run.metrics[metric].dropna() for run in runs if metric in run.metrics}
    frame = pandas.DataFrame(columns, columns=[_plain_cell(run.name) for run in runs], dtype=float)
    return frame.rename_axis("step").sort_index()


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
    """`runs`, a cell a name, and a struct a metric: its `name`, `step` (S x 1) and `value` (S x runs), NaN for none."""
    import numpy as np
    from scipy.io import savemat

    arrays: dict[str, Any] = {"runs": np.array([run.name for run in runs], dtype=object)}
    for number, metric in enumerate(_metrics(runs)):
        name = re.sub(r"^(?![A-Za-z])", "m_", re.sub(r"\W", "_", metric, flags=re.ASCII))[:63]  # what MATLAB takes
        name = f"{name[:57]}_{number}" if name in arrays else name
        frame = curves(runs, metric)
        arrays[name] = {"name": metric, "step": frame.index.to_numpy(float), "value": frame.to_numpy(float)}
    savemat(file, arrays, oned_as="column", long_field_names=True)


def _drawn(runs: list[Run]) -> dict[str, Any]:
    """The `curves` of each metric that some run has two points of, those first by which the best was chosen.

    A metric of epochs is over epochs, so that runs with batches of other sizes compare, unless one has several values
    of an epoch; any other is over steps.
    """
    import pandas

    monitors = {_monitor(run) for run in runs}
    metrics = sorted(_metrics(runs), key=lambda metric: (metric not in monitors, not metric.startswith("val")))
    frames = {metric: frame for metric in metrics if (frame := curves(runs, metric)).count().max() > 1}
    for metric, frame in frames.items():
        by_epoch = [frame[name].dropna() for name in frame]
        by_epoch = [one.set_axis(run.epoch_of.reindex(one.index)) for one, run in zip(by_epoch, runs, strict=True)]
        if _of_epoch(metric) and not any(one.index.has_duplicates or one.index.hasnans for one in by_epoch):
            frames[metric] = pandas.concat(by_epoch, axis=1, keys=[*frame]).sort_index().rename_axis("epoch")
    return frames


def draw(runs: list[Run]) -> Any:
    """A panel for each metric that some run has two points of, with the curves of all runs."""
    from matplotlib.figure import Figure

    frames = _drawn(runs)
    columns = max(1, math.ceil(math.sqrt(len(frames))))
    rows = max(1, math.ceil(len(frames) / columns))
    figure = Figure(figsize=(5 * columns, 3.5 * rows), dpi=120, layout="constrained")
    for number, (metric, frame) in enumerate(frames.items(), 1):
        axes = figure.add_subplot(rows, columns, number, xlabel=frame.index.name)
        axes.set_title(metric, parse_math=False)
        for name, label in zip(frame, labels(runs), strict=True):  # a run without points keeps its colour
            axes.plot(frame[name].dropna(), label=label)
    if frames:
        legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def write_page(runs: list[Run], file: Any) -> None:
    """One page that needs no other file: the table, curves to point at and switch off, pictures and flags."""
    from plotly import graph_objects

    table, names = summary(runs).to_html(index=False, na_rep="", float_format="{:.4g}".format), labels(runs)
    parts = [f'<div style="overflow-x: auto">{table}</div>']
    script: Any = True  # the first figure brings plotly's own along
    for metric, frame in _drawn(runs).items():
        layout = {"title": {"text": html.escape(metric)}, "xaxis": {"title": {"text": frame.index.name}}}
        figure = graph_objects.Figure(layout=layout)
        for run, name in zip(runs, names, strict=True):
            points = frame[_plain_cell(run.name)].dropna()
            points = points[:: 1 + len(points) // _MAX_POINTS]
            hover = f"{metric} %{{y}}<br>{frame.index.name} %{{x}}"
            if frame.index.name == "step":
                hover += ", epoch %{customdata}"
            epochs = run.epoch_of.reindex(points.index)
            figure.add_scatter(x=points.index, y=points, customdata=epochs, name=html.escape(name), hovertemplate=hover)
        figure.update_layout(showlegend=True, height=400)
        parts.append(figure.to_html({"displaylogo": False}, full_html=False, include_plotlyjs=script))
        script = False
    for run, name in zip(runs, names, strict=True):
        flags = "".join(f"{flag}: {text}\n" for flag, text in run.record.flags.items())
        title = html.escape(f"{name} ({run.name})")
        parts.append(f"<details><summary>{title}</summary><pre>{html.escape(flags)}</pre>")
        for picture in sorted(run.record.folder.glob("*.png")):
            parts.append(html_page.picture(picture))
        parts.append("</details>")
    file.write(html_page.page("report", parts))
