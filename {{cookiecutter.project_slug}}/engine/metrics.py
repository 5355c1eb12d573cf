"""What is measured beside the loss: torchmetrics objects, one set a stage, right under any number of processes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, Metric
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy


def for_loss(loss: str) -> dict[str, Metric]:
    """Fresh metrics that suit a loss: its mean, and "acc" (share of right answers, 0..1) for classes, else "mae"."""
    metrics: dict[str, Metric] = {"loss": MeanMetric(nan_strategy="disable")}
    if loss in ("cross_entropy", "nll_loss"):
        metrics["acc"] = MulticlassAccuracy(average="micro", validate_args=False)
    elif loss.startswith("binary_cross_entropy"):
        metrics["acc"] = BinaryAccuracy(validate_args=False)
    else:
        metrics["mae"] = MeanAbsoluteError()
    return metrics


def state(metric: Metric, gather: Callable[[Tensor], Any]) -> dict[str, Tensor]:
    """What a metric has gathered so far, a row for each process.

    gather: (...) -> (processes, ...), which every process has to call at the same time.
    """
    return {name: gather(value) for name, value in metric.metric_state.items() if isinstance(value, Tensor)}


def restore(metric: Metric, state: dict[str, Tensor], rank: int, world_size: int) -> None:
    """Puts back what `state` gave; all of it, being sums, on the first process where their number has changed."""
    for name, rows in state.items():
        if len(rows) == world_size:
            setattr(metric, name, rows[rank])
        elif rank == 0:
            setattr(metric, name, rows.sum(0))
    metric._update_count = 1  # there is no public way to say that it holds something
