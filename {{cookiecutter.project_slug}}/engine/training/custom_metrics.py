"""Metrics as --metrics names them, with arguments, and those of one's own: `my_metrics.DefectRecall`."""

import ast
import inspect
import re
from typing import Any

from torchmetrics import Metric

from engine.cli import discovery
from engine.errors import UsageError, nearest


def split_call(text: str) -> tuple[str, dict[str, Any]]:
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


def metric_name(text: str) -> str:
    """What a metric is called in logs: `defect_recall` for my_metrics.DefectRecall, and `f1score` for F1Score."""
    if "." in (name := split_call(text)[0]):
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.rpartition(".")[2])
    return name.lower()


def metric(path: str, known: dict[str, Any], given: dict[str, Any]) -> Metric:
    """The metric of that path, with given arguments. Others that have no default are filled in from `known`.

    Raises: UsageError: it is no class of torchmetrics' kind, has no such argument, or needs what is not known.
    """
    metric_class = discovery.find("model", path).load()
    if not (isinstance(metric_class, type) and issubclass(metric_class, Metric)):
        raise UsageError(f"--metrics {path} is no subclass of torchmetrics.Metric, which sums up over an epoch")
    parameters = [*inspect.signature(metric_class).parameters.values()]
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        refuse_unknown(path, given, [one.name for one in parameters])
    if missing := [name for name in needed if name not in given and known.get(name) is None]:
        raise UsageError(f"--metrics {path} needs {missing[0]}, which the dataset does not have: give it a default")
    return metric_class(**{name: known.get(name) for name in needed} | given)


def refuse_unknown(name: str, given: dict[str, Any], known: list[str]) -> None:
    """Raises UsageError: something is given that is no argument of a metric."""
    if unknown := [key for key in given if key not in known]:
        near = nearest(unknown[0], known)
        raise UsageError(f"--metrics {name} has no argument {unknown[0]!r}, but {', '.join(known)}{near}")
