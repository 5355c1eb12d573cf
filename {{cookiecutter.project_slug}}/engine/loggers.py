"""metrics.csv in the run folder: appended row by row, and carried on by a resumed run."""

import csv
import os
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only


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
            self.rewrite(self.rows, dict.fromkeys(("epoch", "step", *sorted(row))))
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self.rows += 1

    @rank_zero_only
    def rewrite(self, rows: int, columns: dict[str, Any]) -> None:
        """Keeps the first `rows` rows and adds columns; the file is whole at every moment."""
        old: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                old, columns = list(reader)[:rows], dict.fromkeys(reader.fieldnames or []) | columns
        part = self.path.with_suffix(".csv.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(old)
        os.replace(part, self.path)
        self.rows, self._columns = len(old), list(columns)


class Rewind(Callback):
    """Keeps with each checkpoint how many rows metrics.csv had; a run that goes on from it repeats the later ones."""

    def __init__(self, logger: CSVLogger) -> None:
        self.logger = logger

    def state_dict(self) -> dict[str, int]:
        """The number of rows."""
        return {"rows": self.logger.rows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Drops the rows that came after."""
        if self.logger.path.exists():
            self.logger.rewrite(state["rows"], {})
