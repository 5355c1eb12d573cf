"""MetricLoggingModule: metrics of each stage, logged at the end of an epoch and kept in checkpoints."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from engine.checkpointing.checkpoint_io import check_weights_fit
from engine.errors import UsageError
from engine.launch.data_parallel_rank import data_parallel_rank
from engine.lightning_compat import keep_dtype, mark_as_updated, merge_ranks
from engine.logging import loggers
from engine.training import metrics

STAGES = ("train", "val", "test")


class MetricLoggingModule(LightningModule):
    """Has `metrics` for each stage, such as `train_loss` and `val_acc`; a resumed run goes on with their state.

    What a step logs by `self.log_now` is written before the step's checkpoint, so that a resumed run repeats no row;
    what it logs by Lightning's `self.log` comes after.
    """

    def __init__(self, names: tuple[str, ...] | None, loss: str, target_info: dict[str, Any]) -> None:
        """Builds the metrics; arguments as of metrics.build."""
        super().__init__()
        self.latest_metrics: dict[str, float] = {}  # the latest value of each metric
        self.loaded_metrics: dict[str, float] = {}  # of the checkpoint that was loaded last, see metrics_of
        self.metrics, self._metric_buffers = nn.ModuleDict(), dict[str, MetricBuffer]()
        for stage in STAGES:
            built = metrics.build(names, loss, target_info)
            self._metric_buffers[stage] = MetricBuffer([metric for name, metric in built.items() if name != "loss"])
            self.metrics.update({f"{stage}_{name}": metric for name, metric in built.items()})
        keep_dtype(self.metrics)

    def set_unit(self, inverse_transform: Callable[[Tensor], Tensor] | None) -> None:
        """Measures what `inverse_transform` makes of outputs and targets: a dataset's scaled numbers, in their unit."""
        for buffer in self._metric_buffers.values():
            buffer.inverse_transform = inverse_transform

    def stage_metrics(self, stage: str) -> dict[str, Metric]:
        """The metrics of a stage, by full name (`train_loss`); of all stages for ""."""
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
        updated = {name: metric for name, metric in self.stage_metrics(stage).items() if metric.update_called}
        values = {name: metric.compute().mean() for name, metric in updated.items()}
        for metric in updated.values():
            metric.reset()
        self.log_dict(values, prog_bar=True, logger=False, sync_dist=True)
        if not self.trainer.sanity_checking:
            self.latest_metrics |= {name: value.item() for name, value in values.items()}
            self.log_now({name: self.latest_metrics[name] for name in values})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for buffer in self._metric_buffers.values():
            buffer.flush()
        updated = {name: metric for name, metric in self.stage_metrics("").items() if metric.update_called}
        checkpoint["metrics"] = {name: self._gathered_state(metric) for name, metric in updated.items()}
        checkpoint["latest"] = self.latest_metrics
        checkpoint |= loggers.logged(self.loggers)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # --strategy model_parallel has loaded it already
            check_weights_fit(self, checkpoint["state_dict"])
        self.loaded_metrics = metrics_of(checkpoint)
        if self.trainer.state.fn == "fit":
            last = self.trainer.max_epochs
            if last is not None and 0 <= last <= checkpoint["epoch"]:
                raise UsageError(f"--max_epochs {last}: the checkpoint is of epoch {checkpoint['epoch'] + 1} already")
            self.latest_metrics = dict(checkpoint.get("latest", {}))
            loggers.rewind(self.loggers, checkpoint)
        here = data_parallel_rank(self.trainer)
        for name, state in checkpoint.get("metrics", {}).items():  # of an epoch that goes on
            if name in self.metrics:
                _restore(name, self.metrics[name], state, here.rank, here.size)

    def _gathered_state(self, metric: Metric) -> dict[str, Any]:
        """The states of a metric, of each process; every process has to call it at the same time.

        A tensor becomes (processes, ...), a list of tensors (every output of the epoch, say) a list of such lists.
        """
        here, gathered = data_parallel_rank(self.trainer), dict[str, Any]()
        for name, value in metric.metric_state.items():
            if isinstance(value, list):
                gathered[name] = lists = [[one.cpu() for one in value]] * here.size
                if here.size > 1:
                    torch.distributed.all_gather_object(lists, lists[0], here.group)
            if isinstance(value, Tensor):
                rows = [torch.empty_like(value) for _ in range(here.size)] if here.size > 1 else [value]
                if here.size > 1:
                    torch.distributed.all_gather(rows, value.contiguous(), here.group)
                gathered[name] = torch.stack(rows)
        return gathered


def metrics_of(checkpoint: dict[str, Any]) -> dict[str, float]:
    """The latest value of each metric when a checkpoint was saved, and its "epoch", from 1, and "step"."""
    at = {"epoch": checkpoint["epoch"] + 1, "step": checkpoint["global_step"]}
    return at | checkpoint.get("latest", {})


class MetricBuffer:
    """Collects batches and updates the metrics of a stage with 16 at once, since each call costs time.

    Metrics with floating-point states get each batch as it comes: there the order of the sums would show.
    """

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics, self.batches = metrics, list[tuple[Tensor, Tensor]]()
        states = [state for metric in metrics for state in metric.metric_state.values() if isinstance(state, Tensor)]
        self.inverse_transform: Callable[[Tensor], Tensor] | None = None
        self.capacity = 1 if any(state.is_floating_point() for state in states) else 16

    def add(self, output: Tensor, target: Tensor) -> None:
        """Adds a batch; a large one, such as of masks, is not held back. What is held back is a copy."""
        if self.inverse_transform is not None:
            output, target = self.inverse_transform(output), self.inverse_transform(target)
        if self.batches and [tensor.shape[1:] for tensor in self.batches[0]] != [output.shape[1:], target.shape[1:]]:
            self.flush()
        if self.capacity > 1 and output.numel() <= 2**14:
            output, target = output.clone(), target.clone()  # a network or a collate_fn may use its memory again
        self.batches.append((output, target))
        if len(self.batches) == self.capacity or output.numel() > 2**14:
            self.flush()

    def flush(self) -> None:
        """Updates the metrics with the batches held."""
        if batches := self.batches:
            output, target = batches[0] if len(batches) == 1 else map(torch.cat, zip(*batches, strict=True))
            batches.clear()
            for metric in self.metrics:
                metric.update(output, target)


def _restore(metric_name: str, metric: Any, state: dict[str, Any], rank: int, world_size: int) -> None:
    """Restores a gathered state; with another number of processes the first one gets that of all."""
    for name, rows in state.items():
        if isinstance(rows, list):
            own = rows[rank : rank + 1] if len(rows) == world_size else rows if rank == 0 else []
            setattr(metric, name, [one.to(metric.device) for row in own for one in row])
        elif len(rows) == world_size:
            setattr(metric, name, rows[rank])
        elif (merged := merge_ranks(metric, name, rows)) is None:
            raise UsageError(f"{metric_name} of this epoch is on {len(rows)} devices: go on with these until its end")
        elif rank == 0:
            setattr(metric, name, merged)
    mark_as_updated(metric)
