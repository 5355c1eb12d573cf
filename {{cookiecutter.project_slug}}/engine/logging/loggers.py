"""Loggers: TensorBoard, metrics.csv, Weights & Biases, MLflow; in the run folder, and continued by a resumed run."""

import csv
import importlib.util
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from engine.checkpointing.atomic_write import append, optional, replacing, write_atomically, write_errors
from engine.cli import config_file
from engine.errors import UsageError
from engine.lightning_compat import replace_events_file


def check(action: str, *, logger: tuple[str, ...], **labels: Any) -> None:
    """Raises UsageError: the package of a logger is not installed, and the action logs."""
    for name in logger if action == "fit" else ():
        if name in ("wandb", "mlflow") and importlib.util.find_spec(name) is None:
            raise UsageError(f'--logger {name}: {name} is not installed: pip install -e ".[{name}]"')


def load(
    folder: Path, names: Iterable[str], run_name: str | None, tags: tuple[str, ...], notes: str | None
) -> list[Logger]:
    """The named loggers of the run in `folder`; TensorBoard shows run_name, tags and notes among the flags."""
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoard(folder),
        "csv": lambda: CSVLogger(folder),
        "wandb": lambda: _wandb(folder, name=run_name or folder.name, tags=tags, notes=notes),
        "mlflow": lambda: MLFlow(folder, run_name or folder.name, dict.fromkeys(tags, ""), notes),
    }
    return [make() for name, make in makers.items() if name in names]


def _wandb(folder: Path, **labels: Any) -> Logger:
    """Weights & Biases; `WANDB_MODE=offline` sends nothing. A resumed run continues its run there."""
    earlier = sorted(folder.glob("wandb/*run-*-*"))  # run-DATE-ID, or offline-run-DATE-ID
    run_id = earlier[-1].name.rpartition("-")[2] if earlier else None
    return WandbLogger(**labels, save_dir=folder, id=run_id, resume="allow")


class MLFlow(MLFlowLogger):
    """MLflow, at MLFLOW_TRACKING_URI or else in mlruns/ of the run folder. A resumed run continues its run there."""

    def __init__(self, folder: Path, run_name: str, tags: dict[str, str], notes: str | None) -> None:
        id_file = folder / "mlflow-run"
        self._resumed_id = id_file.read_text(encoding="utf-8") if id_file.exists() else None
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"file:{(folder / 'mlruns').absolute()}"
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # files, because the alternative is a database
        tags |= {"mlflow.note.content": notes} if notes else {}
        super().__init__(folder.parent.name, run_name, uri, tags=tags, run_id=self._resumed_id)
        if rank_zero_only.rank == 0 and not self._resumed_id:  # type: ignore[attr-defined]
            write_atomically(id_file, str(self.run_id))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Logs the flags, at the first start only: MLflow refuses a changed value, such as more epochs on resume."""
        if not self._resumed_id:
            super().log_hyperparams(params)


class TensorBoard(TensorBoardLogger):
    """Lightning's, which also writes the flags to TensorBoard's HParams page; its metrics come from the curves."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, name="", version=folder.name, default_hp_metric=False)
        self._new = not any(folder.glob("events.*"))

    @property
    def experiment(self) -> Any:
        """The SummaryWriter; on a full disk its events wait for room."""
        new = self._experiment is None and rank_zero_only.rank == 0  # type: ignore[attr-defined]
        if new:  # its first words cannot wait
            room = Path(self.log_dir) / "events.part"
            with write_errors(room.with_name("events")):
                append(room, bytes(2**14))
                room.unlink()
        writer = super().experiment
        if new:
            replace_events_file(writer, EventsFile)
        return writer

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is held back. Lightning's closes the file, and the test after training would begin another."""
        if self._experiment is not None:
            self.experiment.flush()
        if status == "success":
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Writes hparams.yaml."""
        with optional(Path(self.log_dir) / self.NAME_HPARAMS_FILE):
            super().save()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Logs the flags."""
        super().log_hyperparams(params)
        if self._new and params:
            from torch.utils.tensorboard.summary import hparams

            plain = {name: value if isinstance(value, int | float) else str(value) for name, value in params.items()}
            _, start, _ = hparams(plain, {})
            self.experiment.file_writer.add_summary(start)
            self.experiment.add_text(
                "config", "".join(f"    {line}\n" for line in config_file.dump(params).splitlines())
            )
        self._new = False


class EventsFile:
    """A file that TensorBoard writes to; what finds no room on the disk waits for the next flush."""

    def __init__(self, path: Path) -> None:
        self.path, self.closed = path, False
        self._pending = b""

    def write(self, data: bytes) -> None:
        """Takes an event, to be written by the next flush."""
        self._pending += data

    def flush(self) -> None:
        """Writes the events since the last flush that succeeded."""
        if self._pending:  # TensorBoard's thread asks again after the end of a run, when the folder may be gone
            with optional(self.path):
                append(self.path, self._pending)
                self._pending = b""

    def close(self) -> None:
        """Flushes."""
        self.flush()
        self.closed = True


@rank_zero_only
def flush(loggers: Iterable[Any]) -> None:
    """Writes the points that TensorBoard's writer has buffered: a resumed run does not log them again."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()


def rows(loggers: Iterable[Any]) -> int:
    """The number of rows in metrics.csv."""
    return next((logger.rows for logger in loggers if isinstance(logger, CSVLogger)), 0)


@rank_zero_only
def rewind(loggers: Iterable[Any], rows: int, step: int) -> None:
    """Drops what a run logged after the checkpoint that it resumes from: it will log that again.

    rows: number of rows of metrics.csv at the checkpoint. step: its optimizer step.
    """
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            logger.rewind(rows)
        elif isinstance(logger, TensorBoardLogger):
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            start = SessionLog(status=SessionLog.START)  # TensorBoard drops later points of earlier files
            logger.experiment.file_writer.add_event(Event(session_log=start), step + 1)


class CSVLogger(Logger):
    """Writes every row at once, so that a kill loses none. (Lightning's own deletes the rows of a resumed run.)"""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.path = run / "metrics.csv"
        self._written, self._columns = 0, list[str]()
        self._pending: list[dict[str, Any]] = []

    @property
    def rows(self) -> int:
        """The rows so far, with those that have found no room yet."""
        return self._written + len(self._pending)

    @property
    def name(self) -> str:
        """The name of the folder that holds the run folders."""
        return self.path.parent.parent.name

    @property
    def version(self) -> str:
        """The name of the run folder."""
        return self.path.parent.name

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a row; on a full disk it waits for the next one that finds room."""
        self._pending.append({"step": step, **metrics})
        with optional(self.path):
            for row in self._pending:
                if row.keys() - set(self._columns):
                    self._rewrite(dict.fromkeys(("epoch", "step", *sorted(row))))
            text = io.StringIO(newline="")
            csv.DictWriter(text, self._columns).writerows(self._pending)
            append(self.path, text.getvalue().encode())
            self._written += len(self._pending)
            self._pending.clear()

    def rewind(self, rows: int) -> None:
        """Keeps the first `rows` rows only; the resumed run repeats the others."""
        self._written = rows
        if self.path.exists():
            self._rewrite({})

    def _rewrite(self, columns: dict[str, Any]) -> None:
        """Writes the first `self.rows` rows again, with more columns; the file is replaced atomically."""
        old: list[dict[str, str]] = []
        if self.path.exists():
            try:
                with self.path.open(newline="", encoding="utf-8") as file:
                    reader = csv.DictReader(file, restkey="")
                    old, columns = list(reader)[: self._written], dict.fromkeys(reader.fieldnames or []) | columns
            except (ValueError, csv.Error) as error:
                raise UsageError(f"{self.path} is broken ({error}): mend it, or delete it") from None
        with replacing(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns), extrasaction="ignore")  # a broken line may have more
            writer.writeheader()
            writer.writerows(old)
        self._written, self._columns = len(old), list(columns)
