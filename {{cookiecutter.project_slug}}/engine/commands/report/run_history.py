"""What a run has left of itself: flags, curves, epochs and seconds; no torch here. Goes with report.py."""

import csv
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engine.cli import config_file

Curve = dict[int, float]  # step -> value


class Run(NamedTuple):
    """What is known of a run. flags: as text; curves: a metric -> its curve; epochs: begun and measured."""

    name: str
    flags: dict[str, str]
    curves: dict[str, Curve]
    epochs: int
    seconds: float


def read(folder: Path, name: str) -> Run:
    """A run, from metrics.csv or, where there is none, from what TensorBoard has: every point of it."""
    kept = folder / "config.yaml"
    flags = {key: raw.text for key, raw in config_file.read(kept, kept=True).items()} if kept.is_file() else {}
    curves: dict[str, Curve] = {}
    epoch_at: dict[int, float] = {}
    for step, metric, value in _csv_points(folder) if (folder / "metrics.csv").is_file() else _event_points(folder):
        if metric == "epoch":
            epoch_at.setdefault(step, value)
        else:
            curves.setdefault(metric, {})[step] = value
    ends = {step for metric in curves if by_epoch(metric) and metric[:4] != "test" for step in curves[metric]}
    epochs = int(max((epoch_at.get(step, -1.0) for step in ends), default=-1.0)) + 1
    return Run(name, flags, curves, epochs, sum(map(_seconds, folder.glob("events.out.tfevents.*"))))


def _csv_points(folder: Path) -> Iterator[tuple[int, str, float]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for metric, text in row.items():
                if text and metric != "step" and row.get("step"):
                    yield int(row["step"]), metric, float(text)


def _event_points(folder: Path) -> Iterator[tuple[int, str, float]]:
    if not any(folder.glob("events.*")):
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    for metric in events.Tags()["scalars"]:
        yield from ((one.step, metric, one.value) for one in events.Scalars(metric))


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


def by_epoch(metric: str) -> bool:
    """Whether a metric is one of an epoch, not of a step or a setting."""
    return metric.startswith(("train_", "val_", "test_")) and not metric.endswith("_step")
