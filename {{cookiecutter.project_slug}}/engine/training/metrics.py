"""What is measured beside the loss: torchmetrics objects, one set a stage, right under any number of processes."""

import inspect
from typing import Any

import torch
import torchmetrics
from torch import Tensor
from torchmetrics import Metric, image
from torchmetrics.classification import MulticlassAccuracy

from engine.errors import UsageError, nearest
from engine.lightning_compat import mark_as_updated

# Short names; any other is the name of a class of torchmetrics, in any spelling of its capitals.
SHORT = {
    "acc": "Accuracy",
    "f1": "F1Score",
    "iou": "JaccardIndex",
    "mae": "MeanAbsoluteError",
    "mse": "MeanSquaredError",
    "r2": "R2Score",
    "psnr": "PeakSignalNoiseRatio",
    "ssim": "StructuralSimilarityIndexMeasure",
}
_IGNORED = -100  # a target that does not count, to cross_entropy too


class Mean(Metric):
    """Mean over items. torchmetrics' own looks for NaN at each step, or, told not to, forgets the weights (1.9)."""

    total: Tensor
    items: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "items"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, mean: Tensor, items: int) -> None:
        """Adds the mean of so many items."""
        self.add(mean, items)

    def add(self, mean: Tensor, items: int) -> None:
        """The same, past what torchmetrics does around each `update`, which takes longer than the sum."""
        mark_as_updated(self)
        self.total.add_(mean, alpha=items)
        self.items.add_(items)

    def compute(self) -> Tensor:
        """The mean of all."""
        return self.total / self.items


def load(names: tuple[str, ...] | None, loss: str, data: dict[str, Any]) -> dict[str, Metric]:
    """Fresh metrics by name: the mean of the loss, and those asked for, or else one that suits the loss.

    data: what DInterface.target_info says of it.

    Raises:
        UsageError: there is no such metric, or it does not go with the loss and the data.
    """
    found: dict[str, Metric] = {"loss": Mean()}
    for name in names if names is not None else ("mae",) if kind(loss, data) == "numbers" else ("acc",):
        found[name.lower()] = _load(name, loss, data)
    return found


def kind(loss: str, data: dict[str, Any]) -> str:
    """What a loss is about: "classes" (a logit each), "questions" (a logit each, yes or no) or "numbers"."""
    if loss in ("cross_entropy", "nll_loss", "multi_margin_loss") or ("." in loss and data.get("whole_numbers")):
        return "classes"
    return "questions" if loss.startswith("binary_cross") else "numbers"


def _load(name: str, loss: str, data: dict[str, Any]) -> Metric:
    plain = {one.lower(): one for one in (*dir(torchmetrics), *dir(image)) if one[0].isupper()}
    full = plain.get(SHORT.get(name.lower(), name).lower())
    if full is None:
        near = nearest(name, [*SHORT, *plain.values()])
        raise UsageError(f"--metrics {name}: torchmetrics has none of that name{near}")
    found = getattr(image, full, None) or getattr(torchmetrics, full)
    takes = {**inspect.signature(found).parameters, **inspect.signature(found.__new__).parameters}
    about, options = kind(loss, data), dict[str, Any]()
    if full == "Accuracy" and about == "classes":  # it alone need not know how many classes there are
        return MulticlassAccuracy(average="micro", ignore_index=_IGNORED, validate_args=False)
    if ("task" in takes) != (about != "numbers"):
        fits = "mae, mse, r2, psnr ..." if about == "numbers" else "acc, f1, auroc ..."
        raise UsageError(f"--metrics {name} does not go with --loss {loss}, which is about {about}: {fits}")
    if "task" in takes:
        options = _task(name, about, data) | {"validate_args": False}
        if "average" in takes and options["task"] != "binary":
            options["average"] = "macro"
        if "ignore_index" in takes and about == "classes":
            options["ignore_index"] = _IGNORED
        if "thresholds" in takes:
            options["thresholds"] = 200  # counts in bins, instead of every output of the epoch
    if "data_range" in takes:
        options["data_range"] = 1.0
    metric = found(**options)
    if any(isinstance(value, list) for value in metric.metric_state.values()):
        raise UsageError(f"--metrics {name} keeps every output of an epoch, which a checkpoint does not: take another")
    return metric


def _task(name: str, about: str, data: dict[str, Any]) -> dict[str, Any]:
    """The arguments by which torchmetrics tells its kinds of classification apart."""
    if about == "questions":
        many = data.get("target") or (1,)
        return {"task": "binary"} if many == (1,) else {"task": "multilabel", "num_labels": many[0]}
    if data.get("num_classes") is None:
        raise UsageError(f"--metrics {name} needs to know num_classes, an attribute that the dataset does not have")
    return {"task": "multiclass", "num_classes": data.get("num_classes")}
