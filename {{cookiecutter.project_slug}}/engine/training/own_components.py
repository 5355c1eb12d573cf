"""A metric or a learning-rate schedule of one's own, by a dotted path such as `my_metrics.DefectRecall`."""

import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from torchmetrics import Metric

from engine.cli import discovery
from engine.errors import UsageError


def metric_name(name: str) -> str:
    """What a metric is called in logs: `defect_recall` for my_metrics.DefectRecall, and `f1score` for F1Score."""
    if "." in name:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.rpartition(".")[2])
    return name.lower()


def metric(path: str, known: dict[str, Any]) -> Metric:
    """The metric of that path. Arguments of its constructor that have no default are filled in from `known`.

    Raises:
        UsageError: it is no class of torchmetrics' kind, or needs what is not known.
    """
    metric_class = discovery.find("model", path).load()
    if not (isinstance(metric_class, type) and issubclass(metric_class, Metric)):
        raise UsageError(f"--metrics {path} is no subclass of torchmetrics.Metric, which sums up over an epoch")
    parameters = inspect.signature(metric_class).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if missing := [name for name in needed if known.get(name) is None]:
        raise UsageError(f"--metrics {path} needs {missing[0]}, which the dataset does not have: give it a default")
    return metric_class(**{name: known[name] for name in needed})


@cache
def schedule(path: str) -> Callable[[float], float]:
    """The function of that path: the share of training done, in 0..1 -> a factor of the learning rate."""
    function: Callable[[float], float] = discovery.find("model", path).load()
    return function
