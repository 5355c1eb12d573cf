"""What is measured beside the loss: torchmetrics objects, one set a stage, right under any number of processes."""

from typing import Any

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


def state(metric: Metric) -> dict[str, Any]:
    """What a metric has gathered so far over all processes. Every process has to ask at the same time."""
    with metric.sync_context(should_unsync=True):
        return dict(metric.metric_state)


def restore(metric: Metric, state: dict[str, Any]) -> None:
    """Puts back what `state` gave, on one process; the others begin at nothing."""
    for name, value in state.items():
        setattr(metric, name, value)
    metric._update_count = 1  # there is no public way to say that it holds something
