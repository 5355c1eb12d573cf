"""Loggers: TensorBoard, metrics.csv, Weights & Biases, MLflow; in the run folder, and continued by a resumed run."""

import csv
import importlib.util
import io
import itertools
import os
import socket
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from engine.checkpointing import run_folder
from engine.checkpointing.atomic_write import append, atomic_file, warn_if_unwritable, write_atomically
from engine.checkpointing.run_records import is_of_epoch
from engine.cli import config_file
from engine.errors import UsageError, printable
from engine.lightning_compat import summary_writer


def check(action: str, *, logger: tuple[str, ...], x_axis: str, **labels: Any) -> None:
    """Raises UsageError: the action logs, and a logger is not installed, or the one of --x_axis is not there."""
    if action == "fit" and x_axis != "step" and "tensorboard" not in logger:
        raise UsageError(f"--x_axis {x_axis} needs TensorBoard, which is not in --logger")
    for name in logger if action == "fit" else ():
        if name in ("wandb", "mlflow") and importlib.util.find_spec(name) is None:
            raise UsageError(f'--logger {name}: {name} is not installed: pip install -e ".[{name}]"')


def build(
    folder: Path,
    *,
    logger: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = ("tensorboard", "csv"),
    run_name: str | None = None,
    tags: tuple[str, ...] = (),
    notes: str | None = None,
    x_axis: Literal["step", "epoch", "both"] = "step",
) -> list[Logger]:
    """The loggers of the run in `folder`; TensorBoard shows run_name, tags and notes among the flags.

    logger: where the metrics go, any of them together; [] for nowhere.
    run_name: a name by which --ckpt_path finds the run; no two runs may have the same.
    tags: words by which runs are picked out in a table.
    notes: what you want to remember about the run.
    x_axis: TensorBoard's axis for metrics of epochs: epoch and both show them as by_epoch/NAME, the first epoch as 1.
    """
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoard(folder, run_name, x_axis),
        "csv": lambda: CSVLogger(folder),
        "wandb": lambda: _wandb(folder, name=run_name or folder.name, tags=tags, notes=notes),
        "mlflow": lambda: MLFlow(folder, run_name or folder.name, dict.fromkeys(tags, ""), notes),
    }
    return [make() for name, make in makers.items() if name in logger]


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
    """Lightning's, which also writes the flags to TensorBoard's HParams page; its metrics come from the curves.

    TensorBoard calls a run by its folder: the events of one with a --run_name are in a folder of that name in its own.
    """

    def __init__(self, folder: Path, run_name: str | None, x_axis: str) -> None:
        is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # others have no folder
        self._earlier = run_folder.event_files(folder) if is_first else []
        place = self._earlier[0].parent if self._earlier else folder / (run_name or "")
        super().__init__(folder.parent, name="", version=folder.name, default_hp_metric=False)
        self.folder, self._new, self._x_axis = place, not self._earlier, x_axis

    @property
    def log_dir(self) -> str:
        """The folder of the events; Lightning's fills in what looks like a variable in its name."""
        return str(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The SummaryWriter."""
        if self._experiment is None:
            self._experiment = summary_writer(self.folder, EventWriter(self.folder))
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        """Writes hparams.yaml."""
        with warn_if_unwritable(self.folder / self.NAME_HPARAMS_FILE):
            super().save()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs values over optimizer steps, those of epochs over epochs, from 1, or over both, as `by_epoch/NAME`."""
        if self._x_axis != "step" and "epoch" in metrics:
            of_epoch = {name: value for name, value in metrics.items() if is_of_epoch(name)}
            by_epoch = {f"by_epoch/{name}": value for name, value in of_epoch.items()}
            super().log_metrics(by_epoch, int(metrics["epoch"]) + 1)
            left_out = of_epoch if self._x_axis == "epoch" else {}
            metrics = {name: value for name, value in metrics.items() if name not in left_out}
        super().log_metrics(metrics, step)

    def rewind(self, sizes: dict[str, int], step: int) -> None:
        """Drops what was logged after a checkpoint, of which the events files had these sizes, at an optimizer step."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        for path in self._earlier if sizes else ():  # an earlier version kept none
            if path.stat().st_size > (size := sizes.get(path.name, 0)):
                os.truncate(path, size)
        start = SessionLog(status=SessionLog.START)  # a TensorBoard that runs drops later points
        self.experiment.file_writer.add_event(Event(session_log=start), step + 1)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Logs the flags."""
        super().log_hyperparams(params)
        if self._new and params:
            from torch.utils.tensorboard.summary import hparams

            plain = {
                key: value if isinstance(value, int | float) else printable(str(value)) for key, value in params.items()
            }
            _, start, _ = hparams(plain, {})
            self.experiment.file_writer.add_summary(start)
            text = textwrap.indent(config_file.dump(params), "    ")  # as code
            self.experiment.add_text("config", text)
        self._new = False


class EventWriter:
    """Appends TensorBoard's events to a file of the run, which is open only meanwhile, every ten seconds or by `flush`.

    What finds no room on the disk waits for the next time.
    """

    _numbers = itertools.count()  # of those of this process

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        name = f"{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        self.path = folder / f"events.out.tfevents.{name}"
        self._pending, self._flush_at = bytearray(), 0.0
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: Any) -> None:
        """Takes an event."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter(self).write(event.SerializeToString())
        if time.monotonic() > self._flush_at:
            self.flush()

    def write(self, record: bytes) -> None:
        """Takes an event as it stands in the file."""
        self._pending += record

    def flush(self) -> None:
        """Writes the events since the last flush that succeeded."""
        self._flush_at = time.monotonic() + 10
        with warn_if_unwritable(self.path):
            self.path.parent.mkdir(exist_ok=True)
            append(self.path, bytes(self._pending))
            self._pending.clear()

    close = flush


def log_now(trainer: Any, values: dict[str, float]) -> None:
    """Writes values to every logger of a Trainer at once, in a row of their own."""
    for logger in trainer.loggers:
        logger.log_metrics({"epoch": trainer.current_epoch, **values}, step=trainer.global_step)


def logged(loggers: Iterable[Any]) -> dict[str, Any]:
    """How much is logged, for a checkpoint: "rows" of metrics.csv, and "events", the bytes of each events file.

    What TensorBoard's writer has buffered is written first: a resumed run does not log it again.
    """
    found: dict[str, Any] = {"rows": 0, "events": {}}
    for logger in loggers if rank_zero_only.rank == 0 else ():  # type: ignore[attr-defined]
        if isinstance(logger, TensorBoard):
            logger.experiment.flush()
            found["events"] = {path.name: path.stat().st_size for path in Path(logger.log_dir).glob("events.out.*")}
        elif isinstance(logger, CSVLogger):
            found["rows"] = logger.rows
    return found


@rank_zero_only
def rewind(loggers: Iterable[Any], checkpoint: dict[str, Any]) -> None:
    """Drops what a run `logged` after the checkpoint that it resumes from: it will log that again."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            logger.rewind(checkpoint.get("rows", 0))
        elif isinstance(logger, TensorBoard):
            logger.rewind(checkpoint.get("events", {}), checkpoint["global_step"])


class CSVLogger(Logger):
    """Writes every row at once, so that a kill loses none. (Lightning's own deletes the rows of a resumed run.)"""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.path = run / "metrics.csv"
        self._written, self._columns = 0, list[str]()
        self._pending: list[dict[str, Any]] = []

    @property
    def rows(self) -> int:
        """The number of rows so far, with those that did not fit on the disk yet."""
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
        """Does nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a row; on a full disk it waits for the next one that finds room."""
        self._pending.append({"step": step, **metrics})
        with warn_if_unwritable(self.path):
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
        with atomic_file(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns), extrasaction="ignore")  # a broken line may have more
            writer.writeheader()
            writer.writerows(old)
        self._written, self._columns = len(old), list(columns)
