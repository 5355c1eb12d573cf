"""`report`: runs side by side: a table, curves, files for a spreadsheet and MATLAB."""

import argparse
import csv
import math
import re
from pathlib import Path
from typing import Any

from engine.checkpointing import find as checkpoints
from engine.checkpointing import run_folder
from engine.commands.report.run_history import Run, by_epoch, read
from engine.errors import UsageError


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
    folders = find(known.runs, run_folder.logs_root(known.default_root_dir))
    named_alike = len({folder.resolve().name for folder in folders}) < len(folders)
    found = [read(folder, str(folder) if named_alike else folder.resolve().name) for folder in folders]
    out = Path(known.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        rows = table(found)
        print("\n".join(lines(rows)), flush=True)
        with (out / "report.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        draw(found, out / "curves.png")
        write_sheets(found, out / "report.xlsx")
        write_arrays(found, out / "report.mat")
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from None
    except ModuleNotFoundError as error:
        raise UsageError(f'report needs {error.name} too: pip install -e ".[report]"') from None
    print(out)


def find(names: list[str], root: Path) -> list[Path]:
    """The run folders that names mean (`version_3` or a folder), or else all of `root`, in order of their number."""
    every = sorted((path for path in root.glob("version_*") if path.is_dir()), key=lambda path: (len(path.name), path))
    if not names and not every:
        raise UsageError(f"report: there is no run in {root}/ yet")
    there = ", ".join(path.name for path in every[-5:]) or "no run"
    found = []
    for name in names:
        path = root / name if re.fullmatch(r"version_\d+", name) else Path(name)
        if not any(one for what in ("config.yaml", "metrics.csv", "events.*") for one in path.glob(what)):
            raise UsageError(f"report: there is no run {name!r}; {root}/ has {there}")
        found.append(path)
    return list(dict.fromkeys(found)) or every


def table(found: list[Run]) -> list[dict[str, Any]]:
    """A row a run: its name, network, dataset, the flags in which the runs differ, the best values, epochs, seconds."""
    keys = dict.fromkeys(key for run in found for key in run.flags if key not in ("model_name", "dataset", "ckpt_path"))
    differ = [key for key in keys if len({run.flags.get(key) for run in found}) > 1]
    metrics = sorted({metric for run in found for metric in run.curves if by_epoch(metric)})
    rows = []
    for run in found:
        row: dict[str, Any] = {"run": run.name}
        row |= {"network": run.flags.get("model_name", ""), "dataset": run.flags.get("dataset", "")}
        row |= {key: run.flags.get(key, "") for key in differ}
        for metric in metrics:
            values = [value for value in run.curves.get(metric, {}).values() if not math.isnan(value)]
            way = checkpoints.monitor_mode(metric)
            row[f"{metric} ({way})"] = (max if way == "max" else min)(values, default="")
        rows.append(row | {"epochs": run.epochs, "seconds": round(run.seconds, 1)})
    return rows


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as text in columns, below their names."""

    def said(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = [list(rows[0]), *([said(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def frames(found: list[Run]) -> dict[str, Any]:
    """A pandas table a metric: a row a step, a column a run; empty where a run has no value."""
    import pandas

    metrics = sorted({metric for run in found for metric in run.curves})
    return {
        metric: pandas.DataFrame({run.name: run.curves.get(metric, {}) for run in found}, dtype=float)
        .rename_axis("step")
        .sort_index()
        for metric in metrics
    }


def write_sheets(found: list[Run], path: Path) -> None:
    """A sheet a metric; a sheet's name has at most 31 letters and none of []:*?/\\."""
    import openpyxl  # noqa: F401  # pandas would ask for it with other words
    import pandas

    with pandas.ExcelWriter(path, engine="openpyxl") as writer:
        pandas.DataFrame(table(found)).to_excel(writer, sheet_name="runs", index=False)
        for number, (metric, frame) in enumerate(frames(found).items()):
            name = re.sub(r"[\[\]:*?/\\]", "_", metric)
            frame.to_excel(writer, sheet_name=name if len(name) <= 31 else f"{name[:27]}_{number}")


def write_arrays(found: list[Run], path: Path) -> None:
    """`runs`, a cell a name, and a struct a metric: `step` (S x 1) and `value` (S x runs), NaN for none."""
    import numpy as np
    from scipy.io import savemat

    arrays: dict[str, Any] = {"runs": np.array([run.name for run in found], dtype=object)}
    for metric, frame in frames(found).items():
        name = re.sub(r"^(?![A-Za-z])", "m_", re.sub(r"\W", "_", metric))[:63]  # what MATLAB takes for a name
        arrays[name] = {"step": frame.index.to_numpy(float), "value": frame.to_numpy(float)}
    savemat(path, arrays, oned_as="column", long_field_names=True)


def draw(found: list[Run], path: Path) -> None:
    """A panel for each metric that some run has two points of, with the curves of all runs."""
    from matplotlib.figure import Figure

    metrics = sorted({metric for run in found for metric, curve in run.curves.items() if len(curve) > 1})
    columns = max(1, math.ceil(math.sqrt(len(metrics))))
    down = max(1, math.ceil(len(metrics) / columns))
    figure = Figure(figsize=(5 * columns, 3.5 * down), layout="constrained")
    for place, metric in enumerate(metrics):
        axes = figure.add_subplot(down, columns, place + 1, xlabel="step", title=metric)
        for number, run in enumerate(found):  # the same colour for a run in every panel
            points = sorted(run.curves.get(metric, {}).items())
            axes.plot(*zip(*points, strict=True) if points else ([], []), color=f"C{number % 10}", label=run.name)
    if metrics:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)
