"""curves.png: the metrics of metrics.csv over the optimizer steps."""

import csv
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.features.pictures.plots import new_figure

_COLORS = {"train": "#0072b2", "val": "#d55e00", "test": "#009e73"}  # distinct for the color-blind too
_MAX_POINTS = 2000  # of a line, about
_FIRST = ("loss", "acc", "mae")  # panels; the learning rate is last


def curves(path: Path) -> Any:
    """A figure with a panel per metric of a metrics.csv; None where no metric has two points."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for name in row.keys() - {"step", "epoch"}:
            split, _, metric = name.removesuffix("_step").partition("_")
            with suppress(ValueError, TypeError):  # an empty cell, or a broken line
                point = float(row["step"] or ""), float(row[name] or "")
                panels.setdefault(metric if split in _COLORS else name, {}).setdefault(name, []).append(point)
    if not any(len(points) > 1 for lines in panels.values() for points in lines.values()):
        return None
    columns = min(3, len(panels))
    num_rows = math.ceil(len(panels) / columns)
    figure = new_figure(4 * columns, 2.8 * num_rows)
    axes = iter(figure.subplots(num_rows, columns, squeeze=False).flat)
    for metric in sorted(panels, key=lambda name: (_FIRST.index(name) if name in _FIRST else 3, name == "lr", name)):
        _draw_panel(next(axes), metric, panels[metric])
    for unused in axes:
        unused.set_axis_off()
    return figure


def _draw_panel(axes: Any, metric: str, lines: dict[str, list[tuple[float, float]]]) -> None:
    for name, points in sorted(lines.items(), key=lambda line: (not line[0].endswith("_step"), line[0])):
        split = name.partition("_")[0]
        color = _COLORS.get(split, "#555555")
        steps, values = zip(*points[:: 1 + len(points) // _MAX_POINTS], strict=True)
        if name.endswith("_step"):
            axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8, label="train, each step")
        elif split == "test":
            axes.plot(steps[-1], values[-1], "*", color=color, markersize=11, label=f"test {values[-1]:.4g}")
        else:
            marker = "o" if len(points) < 30 and split in _COLORS else ""
            label = f"{split} {values[-1]:.4g}" if split in _COLORS else None
            axes.plot(steps, values, marker=marker, color=color, markersize=3, linewidth=1.4, label=label)
    finite = [value for points in lines.values() for _, value in points if math.isfinite(value)]
    if metric != "lr" and finite and min(finite) > 0 and max(finite) > 30 * min(finite):
        axes.set_yscale("log")
    axes.set_title(metric, parse_math=False)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
