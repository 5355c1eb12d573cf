"""Metrics of each stage: MetricLoggingModule logs them after an epoch, MetricState keeps them in checkpoints."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from engine import lightning_compat
from engine.errors import UsageError
from engine.launch.data_parallel_rank import data_parallel_rank
from engine.logging import loggers
from engine.training import metrics

STAGES = ("train", "val", "test")


class MetricLoggingModule(LightningModule):
    """Has `metrics` for each stage, such as `train_loss` and `val_acc`, and logs them at the end of each epoch."""

    def __init__(self, names: tuple[str, ...] | None, loss: str, target_info: dict[str, Any]) -> None:
        """Builds the metrics; arguments as of metrics.build."""
        super().__init__()
        self._classes = metrics.logged_classes(names, target_info)
        self.metrics, self._metric_buffers = nn.ModuleDict(), dict[str, MetricBuffer]()
        for stage in STAGES:
            built = metrics.build(names, loss, target_info)
            self._metric_buffers[stage] = MetricBuffer([metric for name, metric in built.items() if name != "loss"])
            self.metrics.update({f"{stage}_{name}": metric for name, metric in built.items()})
        lightning_compat.keep_dtype(self.metrics)
        self._set = "", 0, ""  # stage, index and name of the set that is measured, where a stage has several
        self._another_follows, self._measured = False, dict[str, Tensor]()

    def set_unit(self, inverse_transform: Callable[[Tensor], Tensor] | None) -> None:
        """Measures what `inverse_transform` makes of outputs and targets: a dataset's scaled numbers, in their unit."""
        for buffer in self._metric_buffers.values():
            buffer.inverse_transform = inverse_transform

    def stage_metrics(self, stage: str) -> dict[str, Metric]:
        """The metrics of a stage, by full name (`train_loss`); of all stages for ""."""
        return {name: metric for name, metric in self.metrics.items() if name.startswith(stage)}  # type: ignore[misc]

    def logged_metrics(self, val_sets: list[str]) -> dict[str, Metric]:
        """The metrics by the names under which they are logged, where these validation sets are measured."""
        logged: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            logged |= dict.fromkeys([name, *self._names_by_class(name)], metric)
        of_val = [(name, metric) for name, metric in logged.items() if name.startswith("val")]
        return logged | {
            self._name_in_set(name, ("val", 0, one)): metric for one in val_sets for name, metric in of_val
        }

    def _names_by_class(self, name: str) -> list[str]:
        """Under which names the value of each class is logged, of a metric by full name; [] of one that has but one."""
        return [f"{name}_{one}" for one in self._classes.get(name.partition("_")[2], [])]

    def begin_set(self, stage: str, index: int, names: list[str]) -> None:
        """Says that the next batch is of the set `names[index]`: what is logged as val_acc is then val_hard_acc.

        A set ends, before the next one begins, with on_validation_epoch_end or on_test_epoch_end, as the last one does.
        """
        before, at, _ = self._set
        if before == stage and at < index:
            self._another_follows = True
            self.on_validation_epoch_end() if stage == "val" else self.on_test_epoch_end()
            self._another_follows = False
            lightning_compat.reset_logged_metrics(self.trainer)
        self._set = stage, index, names[index]

    def log(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Lightning's, under the name of the set that is measured."""
        if self._set[0] and not self.trainer.training and re.match(f"{self._set[0]}[_/]", name):
            name, kwargs["add_dataloader_idx"] = self._name_in_set(name, self._set), False
        super().log(name, *args, **kwargs)

    @staticmethod
    def _name_in_set(name: str, of: tuple[str, int, str]) -> str:
        return re.sub(f"^{of[0]}(?=[_/])", of[2], name) if of[0] else name

    def log_now(self, values: dict[str, float]) -> None:
        """Writes values to every logger at once, in a row of their own."""
        loggers.log_now(self.trainer, values)

    def flush_metrics(self) -> None:
        """Updates the metrics with the batches in the buffer."""
        for buffer in self._metric_buffers.values():
            buffer.flush()

    def _part_metric(self, name: str) -> Any:
        """The metric of that name; of a part of the loss, a mean that is made when it first comes."""
        if name not in self.metrics:
            self.metrics[name] = metrics.Mean().to(self.device)
        return self.metrics[name]

    def _log_epoch(self) -> None:
        stage: Any = self.trainer.state.stage.dataloader_prefix  # type: ignore[union-attr]  # "train", "val" or "test"
        self._metric_buffers[stage].flush()
        updated = [name for name, metric in self.stage_metrics(stage).items() if metric.update_called]
        # All processes compute what one of them has measured: of a small set another one may have had no item.
        for name in dict.fromkeys(name for names in _gather(self.trainer, updated) for name in names):
            if (logged := self._name_in_set(name, self._set)) in self._measured:
                raise UsageError(f"{logged} is a metric of two {stage}_sets: give one of them another name")
            lightning_compat.mark_as_updated(metric := self._part_metric(name))
            value = metric.compute()
            self._measured[logged] = (value * 1.0).mean()  # of counts too
            by_class = [self._name_in_set(one, self._set) for one in self._names_by_class(name)]
            if value.shape == (len(by_class),):  # else it is no value of each class
                self._measured |= dict(zip(by_class, value, strict=True))
            metric.reset()
        if self._another_follows:
            return
        values, self._measured = self._measured, {}
        for name, value in values.items():
            super().log(name, value, prog_bar=True, logger=False, sync_dist=True)
        if not self.trainer.sanity_checking:
            self.log_now({name: value.item() for name, value in values.items()})

    on_train_epoch_end = on_validation_epoch_end = on_test_epoch_end = _log_epoch


class MetricState(Callback):
    """Keeps in checkpoints what has been measured in the epoch so far, and which rows are logged.

    That is the state of every torchmetrics.Metric of a module, and what `self.log` has collected.
    """

    def __init__(self) -> None:
        self._logged: list[Any] = []  # of a checkpoint, until Lightning takes them
        self._latest: dict[str, Any] = {}
        self._rewind_to: dict[str, Any] = {}  # the checkpoint whose rows the loggers go back to
        self.loaded: dict[str, float] = {}  # of the checkpoint that was loaded last, see metrics_of

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for metric in _metrics(module).values() if trainer.precision in ("16-true", "bf16-true") else ():
            lightning_compat.keep_dtype(metric)  # sums over an epoch in 16 bits would be wrong

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._rewind(trainer)
        rank, size = data_parallel_rank(trainer)[:2]
        lightning_compat.restore_logged(trainer, self._logged[rank::size])
        lightning_compat.restore_latest(trainer, self._latest)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._rewind(trainer)
        lightning_compat.restore_latest(trainer, self._latest)  # of a run that had nothing left to train

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        if isinstance(module, MetricLoggingModule):
            module.flush_metrics()
        states = {name: metric.metric_state for name, metric in _metrics(module).items() if metric.update_called}
        gathered = _gather(trainer, {"metrics": states, "logged": lightning_compat.logged_state(trainer)})
        checkpoint["metrics"], checkpoint["logged"] = ([one[key] for one in gathered] for key in ("metrics", "logged"))
        checkpoint["latest"] = {name: value.cpu() for name, value in trainer.callback_metrics.items()}
        checkpoint |= loggers.logged(trainer.loggers)

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.loaded = metrics_of(checkpoint)
        if trainer.state.fn != "fit":
            return
        last = trainer.max_epochs
        if last is not None and 0 <= last <= checkpoint["epoch"]:
            raise UsageError(f"--max_epochs {last}: the checkpoint is of epoch {checkpoint['epoch'] + 1} already")
        self._logged, self._latest = checkpoint.get("logged", []), checkpoint.get("latest", {})
        self._rewind_to = {key: checkpoint[key] for key in ("global_step", "rows", "events") if key in checkpoint}
        states, (rank, size, _) = saved_metrics(checkpoint), data_parallel_rank(trainer)
        for name, metric in _metrics(module).items():
            if own := [state[name] for state in states[rank::size] if name in state]:
                lightning_compat.restore_metric(name.removeprefix("metrics."), metric, own)

    def _rewind(self, trainer: Trainer) -> None:
        """Removes what the run logged after its checkpoint, once no flag has been refused."""
        if self._rewind_to:
            loggers.rewind(trainer.loggers, self._rewind_to)
            self._rewind_to = {}


def _metrics(module: LightningModule) -> dict[str, Metric]:
    """The metrics of a module, by their path in it."""
    for collection in module.modules():
        if isinstance(collection, MetricCollection):
            collection.values()  # writes the state of a compute group to each of its metrics
    return {name: metric for name, metric in module.named_modules() if isinstance(metric, Metric)}


def _gather(trainer: Trainer, value: Any) -> list[Any]:
    """A value of each data-parallel process; all have to call it at the same time."""
    here = data_parallel_rank(trainer)
    if here.size == 1:
        return [value]
    gathered = [None] * here.size
    on_cpu = apply_to_collection(value, Tensor, lambda tensor: tensor.cpu())
    torch.distributed.all_gather_object(gathered, on_cpu, here.group)
    return gathered


def saved_metrics(checkpoint: dict[str, Any]) -> list[dict[str, dict[str, Tensor]]]:
    """The states in a checkpoint of the metrics of a module, by their path in it; one dict a process."""
    states = checkpoint.get("metrics", [])
    if isinstance(states, list):
        return states
    size = max((len(rows) for state in states.values() for rows in state.values()), default=0)  # of version 0.1
    return [
        {f"metrics.{name}": {key: rows[rank] for key, rows in state.items()} for name, state in states.items()}
        for rank in range(size)
    ]


def metrics_of(checkpoint: dict[str, Any]) -> dict[str, float]:
    """The latest value of each metric when a checkpoint was saved, and its "epoch", from 1, and "step"."""
    at = {"epoch": checkpoint["epoch"] + 1, "step": checkpoint["global_step"]}
    return at | {name: float(value) for name, value in checkpoint.get("latest", {}).items()}


class MetricBuffer:
    """Collects batches and updates the metrics of a stage with 16 at once, since each call costs time.

    Metrics with floating-point states get each batch as it comes: there the order of the sums would show.
    """

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics, self.batches = metrics, list[tuple[Tensor, Tensor]]()
        states = [state for metric in metrics for state in metric.metric_state.values()]
        self.inverse_transform: Callable[[Tensor], Tensor] | None = None
        self.keeps_batches = any(isinstance(state, list) for state in states)
        self.capacity = 1 if any(isinstance(one, Tensor) and one.is_floating_point() for one in states) else 16

    def add(self, output: Tensor, target: Tensor) -> None:
        """Adds a batch; a large one, such as of masks, is not held back. What is held back or kept is a copy."""
        if self.inverse_transform is not None:
            output, target = self.inverse_transform(output), self.inverse_transform(target)
        if self.batches and [tensor.shape[1:] for tensor in self.batches[0]] != [output.shape[1:], target.shape[1:]]:
            self.flush()
        if self.keeps_batches or (self.capacity > 1 and output.numel() <= 2**14):
            output, target = output.clone(), target.clone()  # a network or a collate_fn may use its memory again
        self.batches.append((output, target))
        if len(self.batches) == self.capacity or output.numel() > 2**14:
            self.flush()

    def flush(self) -> None:
        """Updates the metrics with the batches in the buffer."""
        if batches := self.batches:
            output, target = batches[0] if len(batches) == 1 else map(torch.cat, zip(*batches, strict=True))
            batches.clear()
            for metric in self.metrics:
                metrics.update(metric, output, target)


def prepare_evaluation(module: Any, set_names: Callable[[str], list[str]]) -> None:
    """Wraps a module's validation_step and test_step, which then skip None, a batch without items.

    A process has one where another one has an item more: all have to take the same number of steps. A
    MetricLoggingModule learns of which set a batch is; any other module needs Lightning's `dataloader_idx` for that.

    set_names: of "val" or "test", the names of its sets in the order of their loaders.
    """
    for stage, name in (("val", "validation_step"), ("test", "test_step")):
        if name not in vars(module):
            object.__setattr__(module, name, _prepared(module, getattr(module, name), stage, set_names))


def _prepared(
    module: Any, step: Callable[..., Any], stage: str, set_names: Callable[[str], list[str]]
) -> Callable[..., Any]:
    if not isinstance(module, MetricLoggingModule):
        return functools.wraps(step)(lambda batch, *args: None if batch is None else step(batch, *args))
    parameters = inspect.signature(step).parameters.values()
    any_number = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    accepted = None if any_number else len(parameters) - 1  # behind the batch

    def call(batch: Any, *args: Any) -> Any:  # args: batch_idx and, of several sets, dataloader_idx
        if len(args) > 1:
            module.begin_set(stage, args[1], set_names(stage))
        return None if batch is None else step(batch, *args[:accepted])

    return call
