"""What a system measures: gathered as it runs, over all processes, written as an epoch ends, kept where it stops."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from engine.checkpointing.checkpoint_io import check_weights_fit
from engine.errors import UsageError
from engine.launch.data_parallel import data_parallel_rank
from engine.lightning_compat import mark_as_updated
from engine.logging import loggers
from engine.training import metrics

STAGES = ("train", "val", "test")


class MetricLoggingModule(LightningModule):
    """Has metrics for each stage, `train_loss`, `val_acc` ..., and goes on with them where a run stopped.

    What a step logs by `self.record` is written before the step's checkpoint, so that a resumed run repeats no row;
    what it logs by Lightning's `self.log` comes after.
    """

    def __init__(self, names: tuple[str, ...] | None, loss: str, facts: dict[str, Any]) -> None:
        """Loads the metrics of those names, beside the loss, for what the data is."""
        super().__init__()
        self.latest_metrics: dict[str, float] = {}  # what was measured last, by name
        loaded = {f"{stage}_{key}": one for stage in STAGES for key, one in metrics.load(names, loss, facts).items()}
        self.metrics = nn.ModuleDict(loaded)
        self._metric_buffers = {
            stage: MetricBuffer([one for name, one in self._of(stage).items() if name != f"{stage}_loss"])
            for stage in STAGES
        }

    def _of(self, stage: str) -> dict[str, Metric]:
        return {name: metric for name, metric in self.metrics.items() if name.startswith(stage)}  # type: ignore[misc]

    def on_train_epoch_end(self) -> None:
        self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test")

    def log_now(self, values: dict[str, float]) -> None:
        """Writes values to every logger at once, before this step's checkpoint: a resumed run repeats no row."""
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **values}, step=self.global_step)

    def _log_epoch(self, stage: str) -> None:
        self._metric_buffers[stage].flush()
        found = {name: metric for name, metric in self._of(stage).items() if metric.update_called}
        values = {name: metric.compute() for name, metric in found.items()}
        for metric in found.values():
            metric.reset()
        self.log_dict(values, prog_bar=True, logger=False, sync_dist=True)
        if not self.trainer.sanity_checking:
            self.latest_metrics |= {name: value.item() for name, value in values.items()}
            self.log_now({name: self.latest_metrics[name] for name in values})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for waiting in self._metric_buffers.values():
            waiting.flush()
        gathered = {name: metric for name, metric in self._of("").items() if metric.update_called}
        checkpoint["metrics"] = {name: _state(metric, self._rows) for name, metric in gathered.items()}
        checkpoint["latest"] = self.latest_metrics
        loggers.flush(self.loggers)
        checkpoint["rows"] = loggers.rows(self.loggers)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # --strategy model_parallel has loaded it already
            check_weights_fit(self, checkpoint["state_dict"])
        if self.trainer.state.fn == "fit":
            last = self.trainer.max_epochs
            if last is not None and 0 <= last <= checkpoint["epoch"]:
                raise UsageError(f"--max_epochs {last}: the checkpoint is of epoch {checkpoint['epoch'] + 1} already")
            self.latest_metrics = dict(checkpoint.get("latest", {}))
            loggers.rewind(self.loggers, checkpoint.get("rows", 0), checkpoint["global_step"])
        for name, state in checkpoint.get("metrics", {}).items():  # the means of an epoch that goes on
            if name in self.metrics:
                here = data_parallel_rank(self.trainer)
                _restore(self._of(name)[name], state, here.rank, here.size)

    def _rows(self, value: Tensor) -> Any:
        here = data_parallel_rank(self.trainer)
        rows = [torch.empty_like(value) for _ in range(here.size)]
        if len(rows) == 1:
            return value[None]
        torch.distributed.all_gather(rows, value.contiguous(), here.group)
        return torch.stack(rows)


class MetricBuffer:
    """Batches on their way to the metrics of a stage: what only counts gets 16 at once, for a call is what costs time.

    Metrics that hold anything but whole numbers get each batch as it comes: the order of their sums would show.
    """

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics, self.batches = metrics, list[tuple[Tensor, Tensor]]()
        states = [one for metric in metrics for one in metric.metric_state.values() if isinstance(one, Tensor)]
        self.most = 1 if any(one.is_floating_point() for one in states) else 16

    def add(self, output: Tensor, target: Tensor) -> None:
        """A batch; a large one, such as of masks, is not kept."""
        if self.batches and [one.shape[1:] for one in self.batches[0]] != [output.shape[1:], target.shape[1:]]:
            self.flush()
        self.batches.append((output, target))
        if len(self.batches) == self.most or output.numel() > 2**14:
            self.flush()

    def flush(self) -> None:
        """Gives the metrics what is there."""
        if batches := self.batches:
            output, target = batches[0] if len(batches) == 1 else map(torch.cat, zip(*batches, strict=True))
            batches.clear()
            for metric in self.metrics:
                metric.update(output, target)


def _state(metric: Metric, gather: Callable[[Tensor], Any]) -> dict[str, Tensor]:
    """What a metric has gathered so far, a row for each process.

    gather: (...) -> (processes, ...), which every process has to call at the same time.
    """
    return {name: gather(value) for name, value in metric.metric_state.items() if isinstance(value, Tensor)}


def _restore(metric: Metric, state: dict[str, Tensor], rank: int, world_size: int) -> None:
    """Puts back what `_state` gave; all of it, being sums, on the first process where their number has changed."""
    for name, rows in state.items():
        if len(rows) == world_size:
            setattr(metric, name, rows[rank])
        elif rank == 0:
            setattr(metric, name, rows.sum(0))
    mark_as_updated(metric)
