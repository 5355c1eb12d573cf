"""curves.png, drawn of metrics.csv; goes with engine/pictures.py."""

import csv
import math
from pathlib import Path
from typing import Any

from engine.features.pictures.plots import figure

_COLOURS = {"train": "#0072b2", "val": "#d55e00", "test": "#009e73"}  # told apart by the colour-blind too
_POINTS = 2000  # of a line, about


def curves(path: Path) -> Any:
    """Every metric of a metrics.csv over the optimiser steps, a panel each; None where there are no two points."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in rows[0] if rows else ():
        pairs = ((_number(row["step"]), _number(row[name])) for row in rows)
        points = [(step, value) for step, value in pairs if step is not None and value is not None]
        stage, _, metric = name.removesuffix("_step").partition("_")
        if points and name not in ("step", "epoch"):
            panels.setdefault(metric if stage in _COLOURS else name, {})[name] = points
    if not any(len(points) > 1 for lines in panels.values() for points in lines.values()):
        return None
    wide = min(3, len(panels))
    high = math.ceil(len(panels) / wide)
    drawn = figure(4 * wide, 2.8 * high)
    axes = drawn.subplots(high, wide, squeeze=False).flat
    first = ("loss", "acc", "mae")
    for metric in sorted(panels, key=lambda name: (first.index(name) if name in first else 3, name == "lr", name)):
        _panel(next(axes), metric, panels[metric])
    for left in axes:
        left.set_axis_off()
    return drawn


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:  # nothing was logged there, or no number
        return None


def _panel(axes: Any, metric: str, lines: dict[str, list[tuple[float, float]]]) -> None:
    for name, points in sorted(lines.items(), key=lambda line: (not line[0].endswith("_step"), line[0])):
        stage = name.partition("_")[0]
        colour = _COLOURS.get(stage, "#555555")
        steps, values = zip(*points[:: 1 + len(points) // _POINTS], strict=True)
        if name.endswith("_step"):
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8, label="train, each step")
        elif stage == "test":
            axes.plot(steps[-1], values[-1], "*", color=colour, markersize=11, label=f"test {values[-1]:.4g}")
        else:
            mark = "o" if len(points) < 30 and stage in _COLOURS else ""
            label = f"{stage} {values[-1]:.4g}" if stage in _COLOURS else None
            axes.plot(steps, values, marker=mark, color=colour, markersize=3, linewidth=1.4, label=label)
    finite = [value for points in lines.values() for _, value in points if math.isfinite(value)]
    if metric != "lr" and finite and min(finite) > 0 and max(finite) > 30 * min(finite):
        axes.set_yscale("log")
    axes.set_title(metric, parse_math=False)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
