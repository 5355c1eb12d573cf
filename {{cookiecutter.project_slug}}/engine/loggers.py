"""metrics.csv in the run folder: appended row by row, and carried on by a resumed run."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only


def rows(loggers: Iterable[Any]) -> int:
    """How many rows metrics.csv has."""
    return next((logger.rows for logger in loggers if isinstance(logger, CSVLogger)), 0)


@rank_zero_only
def rewind(loggers: Iterable[Any], rows: int, step: int) -> None:
    """Drops what a run had logged after the checkpoint that it goes on from: it will log that again.

    rows: of metrics.csv, when the checkpoint was written. step: of the optimiser, then.
    """
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            logger.rewind(rows)
        elif isinstance(logger, TensorBoardLogger):
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            start = SessionLog(status=SessionLog.START)  # TensorBoard forgets what earlier files have from here on
            logger.experiment.file_writer.add_event(Event(session_log=start), step + 1)


class CSVLogger(Logger):
    """Writes every row at once, so that a kill loses none. (Lightning's own deletes the rows of a run that goes on.)"""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.path = run / "metrics.csv"
        self.rows, self._columns = 0, list[str]()

    @property
    def name(self) -> str:
        """The folder of the run folders."""
        return self.path.parent.parent.name

    @property
    def version(self) -> str:
        """The run folder."""
        return self.path.parent.name

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a row."""
        row = {"step": step, **metrics}
        if row.keys() - set(self._columns):
            self._rewrite(dict.fromkeys(("epoch", "step", *sorted(row))))
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self.rows += 1

    def rewind(self, rows: int) -> None:
        """Drops all but the first `rows` rows: a run that goes on from when they were written repeats the others."""
        self.rows = rows
        if self.path.exists():
            self._rewrite({})

    def _rewrite(self, columns: dict[str, Any]) -> None:
        """The same rows with more columns; the file is whole at every moment."""
        old: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                old, columns = list(reader)[: self.rows], dict.fromkeys(reader.fieldnames or []) | columns
        part = self.path.with_suffix(".csv.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(old)
        os.replace(part, self.path)
        self.rows, self._columns = len(old), list(columns)
