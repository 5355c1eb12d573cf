"""curves.png: the metrics of metrics.csv over epochs, with the optimizer steps above."""

import csv
import math
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpointing.run_records import is_of_epoch
from engine.logging.figures import new_figure

_COLORS = {"train": "#0072b2", "val": "#d55e00", "test": "#009e73"}  # distinct for the color-blind too
_MAX_POINTS = 2000  # of a line, about
_FIRST = ("loss", "acc", "mae")  # panels; the learning rate is last


def curves(path: Path) -> Any:
    """A figure with a panel per metric of a metrics.csv; None where no metric has two points."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    ends = [(0, 0)]  # the step at which each epoch has ended, and the number of epochs then
    for row in rows:
        of_epoch = any(row[name] for name in row if is_of_epoch(name) and str(name).startswith("train"))
        with suppress(ValueError, TypeError):
            if of_epoch and (end := int(row["step"] or "")) > ends[-1][0]:
                ends.append((end, int(row["epoch"] or "") + 1))
        for name in row.keys() - {"step", "epoch"}:
            split, _, metric = name.removesuffix("_step").replace("/", "_", 1).partition("_")
            with suppress(ValueError, TypeError):  # an empty cell, or a broken line
                point = float(row["step"] or ""), float(row[name] or "")
                panels.setdefault(metric if split in _COLORS else name, {}).setdefault(name, []).append(point)
    if not any(len(points) > 1 for lines in panels.values() for points in lines.values()):
        return None
    columns = min(3, len(panels))
    num_rows = math.ceil(len(panels) / columns)
    figure = new_figure(4 * columns, 2.8 * num_rows)
    figure.set_layout_engine("tight")  # in half of the time of a constrained one
    axes = iter(figure.subplots(num_rows, columns, squeeze=False).flat)
    for metric in sorted(panels, key=lambda name: (_FIRST.index(name) if name in _FIRST else 3, name == "lr", name)):
        _draw_panel(next(axes), metric, panels[metric], ends)
    for unused in axes:
        unused.set_axis_off()
    return figure


def _draw_panel(
    axes: Any, metric: str, lines: dict[str, list[tuple[float, float]]], ends: list[tuple[int, int]]
) -> None:
    steps_of, epochs_of = np.array(ends, float).T
    by_epoch = len(ends) > 1  # a run that has ended no epoch is drawn over its steps
    for name, points in sorted(lines.items(), key=lambda line: (not line[0].endswith("_step"), line[0])):
        split = re.split("[_/]", name)[0]
        color = _COLORS.get(split, "#555555")
        steps, values = zip(*points[:: 1 + len(points) // _MAX_POINTS], strict=True)
        places = _extended(np.array(steps), steps_of, epochs_of) if by_epoch else steps
        if name.endswith("_step"):
            axes.plot(places, values, color=color, alpha=0.3, linewidth=0.8, label="train, each step")
        elif split == "test":
            axes.plot(places[-1], values[-1], "*", color=color, markersize=11, label=f"test {values[-1]:.4g}")
        else:
            marker = "o" if len(points) < 30 and split in _COLORS else ""
            label = f"{split} {values[-1]:.4g}" if split in _COLORS else None
            axes.plot(places, values, marker=marker, color=color, markersize=3, linewidth=1.4, label=label)
    finite = [value for points in lines.values() for _, value in points if math.isfinite(value)]
    if metric != "lr" and finite and min(finite) > 0 and max(finite) > 30 * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # what looks like 10^-1 takes long to draw
        axes.yaxis.set_minor_formatter("")
    axes.set_title(metric, parse_math=False)
    axes.set_xlabel("epoch" if by_epoch else "step")
    axes.grid(alpha=0.25)
    if by_epoch:
        to_steps = partial(_extended, known=epochs_of, values=steps_of)
        to_epochs = partial(_extended, known=steps_of, values=epochs_of)
        above = axes.secondary_xaxis("top", functions=(to_steps, to_epochs))
        above.tick_params(labelsize=7, colors="#777777")
        above.set_xlabel("step", fontsize=7, color="#777777")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _extended(x: Any, known: Any, values: Any) -> Any:
    """The values at x between known ones, and beyond these as they went at the end and at the beginning."""
    slopes = np.diff(values) / np.diff(known)
    beyond = slopes[-1] * np.maximum(x - known[-1], 0) + slopes[0] * np.minimum(x - known[0], 0)
    return np.interp(x, known, values) + beyond
