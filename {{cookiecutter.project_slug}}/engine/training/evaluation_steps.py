"""Calls a LightningModule's validation_step and test_step: for no empty batch, and with each set measured by itself."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from engine.training.metric_logging import MetricLoggingModule


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
