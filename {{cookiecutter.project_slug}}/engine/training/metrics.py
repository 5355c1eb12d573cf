"""Metrics by name: the mean of the loss, torchmetrics set up for the task of the loss and the data, and one's own."""

import ast
import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
import torchmetrics
from torch import Tensor
from torchmetrics import Metric, classification, image

from engine.checkpointing.monitor_mode import ALIASES
from engine.cli import discovery
from engine.errors import UsageError, nearest
from engine.lightning_compat import mark_as_updated
from engine.training.output_spec import MISSING, infer_task

IGNORE_INDEX = -100  # the default of cross_entropy
_OF_PROBABILITIES = tuple(  # with their subclasses
    getattr(classification, f"Multiclass{name}") for name in ("PrecisionRecallCurve", "CalibrationError", "HingeLoss")
)


class Mean(Metric):
    """Weighted mean, of the losses of batches. torchmetrics' MeanMetric checks for NaN at each step (1.9)."""

    higher_is_better = False
    total: Tensor
    items: Tensor  # the sum of the weights

    def __init__(self) -> None:
        super().__init__()
        dtype = torch.float32 if torch.backends.mps.is_available() else torch.float64  # counts above 16.7 million too
        for name in ("total", "items"):
            self.add_state(name, torch.tensor(0.0, dtype=dtype), dist_reduce_fx="sum")

    def update(self, mean: Tensor, weight: float | Tensor) -> None:
        """Adds the mean () of a batch, with the weight that it has, such as its number of items."""
        self.add(mean, weight)

    def add(self, mean: Tensor, weight: float | Tensor) -> None:
        """As `update`, without torchmetrics' wrapper around it, which takes longer than the sum."""
        mark_as_updated(self)
        if isinstance(weight, Tensor):
            self.total.add_(torch.where(weight > 0, mean * weight.to(self.total), 0.0))
        elif weight:  # else the mean is NaN, as of a batch in which no target counts
            self.total.add_(mean, alpha=weight)
        self.items.add_(weight)

    def compute(self) -> Tensor:
        """The mean over all batches, ()."""
        return (self.total / self.items).float()


def build(names: tuple[str, ...] | None, loss: str, target_info: dict[str, Any]) -> dict[str, Metric]:
    """Fresh metrics by lower-case name: "loss", and those of `names` or, with None, one that suits the loss.

    target_info: see SplitDataModule.target_info; and "ignore_index", a class that does not count, and "thresholds", for
        AUROC and the like in so many bins, which are otherwise exact and keep every output of an epoch.

    Raises: UsageError: there is no such metric, or it does not go with the loss and the data.
    """
    task = infer_task(loss, target_info)
    if names is None:
        names = () if task == "other" else ("mae",) if task == "regression" else ("acc",)
    built = {logged: _build(name, loss, task, target_info) for name, logged in logged_names(names).items()}
    if "loss" in built or len(built) < len({*names}):
        raise UsageError(f"--metrics {' '.join(names)}: another one would be logged as {', '.join(['loss', *built])}")
    return {"loss": Mean()} | built


def logged_names(names: Sequence[str]) -> dict[str, str]:
    """What each of --metrics is called in logs: `defect_recall` for my_metrics.DefectRecall, `f1score` for F1Score.

    Of several with one name, those with arguments have these in it: `acc_top_k_5` for acc(top_k=5).
    """
    calls, logged = [_split_call(text) for text in names], dict[str, str]()
    own = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path.rpartition(".")[2]) if "." in path else path for path, _ in calls]
    plain = [name.lower() for name in own]
    for text, name, (_, given) in zip(names, plain, calls, strict=True):
        words = [f"{key}_{value}" for key, value in given.items()] if plain.count(name) > 1 else []
        logged[text] = re.sub(r"\W+", "_", "_".join([name, *words]))
    return logged


def logged_classes(names: tuple[str, ...] | None, target_info: dict[str, Any]) -> dict[str, list[str]]:
    """By the name of a metric of one's own, or with average='none', the classes whose values are logged too.

    target_info: as of `build`, with "classes", their names; without, they are numbers.
    """
    calls = {name: _split_call(name)[1] for name in names or ()}
    named = target_info.get("classes")
    classes = [re.sub(r"\W+", "_", str(one)) for one in named] if isinstance(named, (list, tuple)) else []
    known = target_info.get("num_classes") or len({*classes})
    own = {name for name in calls if known and is_own(name)}
    asked = [name for name, given in calls.items() if name in own or given.get("average", "") in ("none", None)]
    number = (known or (target_info.get("shape") or (0,))[0]) if asked else 0  # of a dict of heads there are several
    if len({*classes}) != number:
        classes = [str(one) for one in range(number)]
    return {logged: classes for name, logged in logged_names(names or ()).items() if name in asked}


def is_own(name: str) -> bool:
    """Whether one of --metrics is a dotted path, to a metric of one's own."""
    return "." in _split_call(name)[0]


def update(metric: Metric, output: Tensor, target: Tensor) -> None:
    """Adds a batch to a metric; one that compares the scores of items gets probabilities in place of logits of classes.

    torchmetrics (1.9) would take a batch for probabilities if all of its logits happen to lie in 0..1.
    """
    metric.update(output.float().softmax(1) if isinstance(metric, _OF_PROBABILITIES) else output, target)


def memory_notes(metrics: dict[str, Metric], num_items: int, target_info: dict[str, Any]) -> list[str]:
    """A note on metrics that keep every output of an epoch, where these take a gigabyte or more at its end.

    metrics: of a stage, by name. target_info: as of `build`, with the "shape" of a target.
    """
    exact = [name for name, metric in metrics.items() if getattr(metric, "thresholds", 0) is None]
    num_targets = num_items * math.prod(target_info.get("shape", (0,)))
    scores = target_info.get("num_classes") if target_info.get("is_integer") else 1
    gigabytes = len(exact) * num_targets * (4 * (scores or 1) + 8) / 1e9  # a score has 4 bytes, a target 8
    if 6 * gigabytes < 1:  # torchmetrics 1.9 computes in five times what it has kept
        return []
    names = " and ".join(name.partition("_")[2] for name in exact)
    needs = f"{gigabytes:.1f} GB for the outputs of an epoch and {6 * gigabytes:.0f} GB at its end"
    return [f"exact {names}: {needs}, or bins by --metric_thresholds 200"]


def _build(text: str, loss: str, task: str, target_info: dict[str, Any]) -> Metric:
    name, given = _split_call(text)
    if "." in name:
        return _own_metric(name, target_info | {"task": task}, given)
    classes = {known.lower(): known for known in (*dir(torchmetrics), *dir(image)) if known[0].isupper()}
    class_name = classes.get(ALIASES.get(name.lower(), name).lower())
    if class_name is None:
        close = nearest(name, [*(one for one in ALIASES if ALIASES[one].lower() in classes), *classes.values()])
        raise UsageError(f"--metrics {name}: torchmetrics has none of that name{close}")
    ignore_index = target_info.get("ignore_index", IGNORE_INDEX)
    if class_name == "Accuracy" and task == "multiclass" and not given:  # it alone needs no num_classes
        return classification.MulticlassAccuracy(average="micro", ignore_index=ignore_index, validate_args=False)
    metric_class = getattr(image, class_name, None) or getattr(torchmetrics, class_name)
    accepted = inspect.signature(metric_class).parameters | inspect.signature(metric_class.__new__).parameters
    if ("task" in accepted) != (task not in ("regression", "other")):
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
            per_class = getattr(classification, f"Multiclass{class_name}", object)
            # torchmetrics' macro mean leaves out a class that no item is of, and reads 1.0 where only one is left.
            left_out = task == "multiclass" and issubclass(per_class, classification.MulticlassStatScores)
            options["average"] = "none" if left_out else "macro"  # the mean is taken when it is logged
            if class_name == "Accuracy" and task == "multiclass":
                options["average"] = "micro"
        if "ignore_index" in accepted:
            options["ignore_index"] = ignore_index if task == "multiclass" else MISSING
        if "thresholds" in accepted:
            options["thresholds"] = target_info.get("thresholds")
    if "data_range" in accepted:
        options["data_range"] = 1.0
    _refuse_unknown(name, given, [key for key in accepted if key not in ("cls", "args", "kwargs")])
    try:
        if given and "validate_args" in options:
            metric_class(**options | given | {"validate_args": True})
        return metric_class(**options | given)
    except ValueError as error:
        raise UsageError(f"--metrics {text}: {' '.join(str(error).split())}") from None


def _split_call(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments in one of --metrics, such as `FBetaScore(beta=2.0)`. Raises UsageError: in no such."""
    name = text.partition("(")[0]
    try:
        call = ast.parse(text, mode="eval").body
        given = {word.arg or "": ast.literal_eval(word.value) for word in getattr(call, "keywords", [])}
        if "" in given or getattr(call, "args", []) or not re.fullmatch(r"\w+(\.\w+)*", name):
            raise ValueError(text)
    except (SyntaxError, ValueError):
        form = "write a name, or one with arguments: FBetaScore(beta=2.0), Recall(average='none')"
        raise UsageError(f"--metrics {text!r}: {form}") from None
    return name, given


def _own_metric(path: str, known: dict[str, Any], given: dict[str, Any]) -> Metric:
    """The metric of that path, with given arguments. Others that have no default are filled in from `known`.

    Raises: UsageError: it is no class of torchmetrics' kind, has no such argument, or needs what is not known.
    """
    metric_class = discovery.find("model", path).load()
    if not (isinstance(metric_class, type) and issubclass(metric_class, Metric)):
        raise UsageError(f"--metrics {path} is no subclass of torchmetrics.Metric, which sums up over an epoch")
    parameters = [*inspect.signature(metric_class).parameters.values()]
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        _refuse_unknown(path, given, [one.name for one in parameters])
    if missing := [name for name in needed if name not in given and known.get(name) is None]:
        raise UsageError(f"--metrics {path} needs {missing[0]}, which the dataset does not have: give it a default")
    return metric_class(**{name: known.get(name) for name in needed} | given)


def _refuse_unknown(name: str, given: dict[str, Any], known: list[str]) -> None:
    """Raises UsageError: something is given that is no argument of a metric."""
    if unknown := [key for key in given if key not in known]:
        near = nearest(unknown[0], known)
        raise UsageError(f"--metrics {name} has no argument {unknown[0]!r}, but {', '.join(known)}{near}")
