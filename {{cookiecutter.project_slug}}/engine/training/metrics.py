"""Metrics by name: the mean of the loss, and torchmetrics set up for the task of the loss and the data."""

import inspect
from typing import Any

import torch
import torchmetrics
from torch import Tensor
from torchmetrics import Metric, image
from torchmetrics.classification import MulticlassAccuracy

from engine.errors import UsageError, nearest
from engine.lightning_compat import mark_as_updated
from engine.training.answers import task_of

# Short names; any other is a class of torchmetrics, in upper or lower case.
ALIASES = {
    "acc": "Accuracy",
    "f1": "F1Score",
    "iou": "JaccardIndex",
    "mae": "MeanAbsoluteError",
    "mse": "MeanSquaredError",
    "r2": "R2Score",
    "psnr": "PeakSignalNoiseRatio",
    "ssim": "StructuralSimilarityIndexMeasure",
}
_IGNORE_INDEX = -100  # the default of cross_entropy


class Mean(Metric):
    """Mean over items. torchmetrics' MeanMetric checks for NaN at each step, or ignores the weights (1.9)."""

    total: Tensor
    items: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "items"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, mean: Tensor, items: int) -> None:
        """Adds the mean () of a number of items."""
        self.add(mean, items)

    def add(self, mean: Tensor, items: int) -> None:
        """As `update`, without torchmetrics' wrapper around it, which takes longer than the sum."""
        mark_as_updated(self)
        self.total.add_(mean, alpha=items)
        self.items.add_(items)

    def compute(self) -> Tensor:
        """The mean over all items, ()."""
        return self.total / self.items


def build(names: tuple[str, ...] | None, loss: str, target_info: dict[str, Any]) -> dict[str, Metric]:
    """Fresh metrics by lower-case name: "loss", and those of `names` or, with None, one that suits the loss.

    target_info: see SplitDataModule.target_info.

    Raises:
        UsageError: there is no such metric, or it does not go with the loss and the data.
    """
    task = task_of(loss, target_info)
    if names is None:
        names = () if task == "none" else ("mae",) if task == "regression" else ("acc",)
    return {"loss": Mean()} | {name.lower(): _build(name, loss, task, target_info) for name in names}


def _build(name: str, loss: str, task: str, target_info: dict[str, Any]) -> Metric:
    classes = {known.lower(): known for known in (*dir(torchmetrics), *dir(image)) if known[0].isupper()}
    class_name = classes.get(ALIASES.get(name.lower(), name).lower())
    if class_name is None:
        close = nearest(name, [*ALIASES, *classes.values()])
        raise UsageError(f"--metrics {name}: torchmetrics has none of that name{close}")
    if class_name == "Accuracy" and task == "multiclass":  # it alone needs no num_classes
        return MulticlassAccuracy(average="micro", ignore_index=_IGNORE_INDEX, validate_args=False)
    metric_class = getattr(image, class_name, None) or getattr(torchmetrics, class_name)
    accepted = inspect.signature(metric_class).parameters | inspect.signature(metric_class.__new__).parameters
    if ("task" in accepted) != (task not in ("regression", "none")):
        fitting = "mae, mse, r2, psnr ..." if task == "regression" else "acc, f1, auroc ..."
        raise UsageError(f"--metrics {name} does not go with --loss {loss}, whose task is {task}: {fitting}")
    options: dict[str, Any] = {}
    if "task" in accepted:
        options = {"task": task, "validate_args": False}
        if task == "multilabel":
            options["num_labels"] = target_info["shape"][0]
        if task == "multiclass":
            options["num_classes"] = target_info.get("num_classes")
            if options["num_classes"] is None:
                raise UsageError(f"--metrics {name} needs num_classes, an attribute that the dataset does not have")
        if "average" in accepted and task != "binary":
            per_class = getattr(torchmetrics.classification, f"Multiclass{class_name}", object)
            # torchmetrics' macro mean leaves out a class that no item is of, and reads 1.0 where only one is left.
            left_out = task == "multiclass" and issubclass(per_class, torchmetrics.classification.MulticlassStatScores)
            options["average"] = "none" if left_out else "macro"  # the mean is taken when it is logged
        if "ignore_index" in accepted and task == "multiclass":
            options["ignore_index"] = _IGNORE_INDEX
        if "thresholds" in accepted:
            options["thresholds"] = 200  # counts in bins, instead of every output of the epoch
    if "data_range" in accepted:
        options["data_range"] = 1.0
    metric = metric_class(**options)
    if any(isinstance(value, list) for value in metric.metric_state.values()):
        raise UsageError(f"--metrics {name} keeps every output of an epoch, which a checkpoint does not: take another")
    return metric
