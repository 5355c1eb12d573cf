"""ItemFields: the inputs, the target and the metadata (id, weight ...) in an item or a batch."""

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from torch import Tensor

from engine.errors import UsageError

TARGET_NAMES = ("target", "targets", "label", "labels", "y")


class Fields(NamedTuple):
    """An item or a batch taken apart.

    args, kwargs: the inputs of `forward`. target: None where there is none. to_forward: the target once more, by name,
    where `forward` has a parameter for it. note: what was guessed or left out, or "".
    """

    args: list[Any]
    kwargs: dict[str, Any]
    target: Any
    to_forward: dict[str, Any] = {}
    note: str = ""

    def num_items(self) -> int:
        """The number of items of a batch: the length of its first tensor, or else of a dict of them, or of a list."""
        values = [*self.args, *self.kwargs.values(), self.target]
        ranked = sorted(values, key=lambda one: (not isinstance(one, Tensor), not isinstance(one, Mapping)))
        return next((size for size in map(_length, ranked) if size), 1)


class ItemFields:
    """Takes items and batches apart, as the parameters of a network's `forward` ask.

    A dict feeds parameters by name; its target is called target, targets, label, labels or y. A tuple or list is
    (*inputs, target), with as many inputs as `forward` takes; what follows the target, and texts at the end, such as
    names of files, only describe the item. Any other object is one input, and its target is an attribute of it.
    """

    def __init__(self, forward: Callable[..., Any] | None = None) -> None:
        """forward: None where the network is not known: every entry of a tuple but the last is an input then."""
        parameters = [*inspect.signature(forward).parameters.values()] if forward else []
        positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        keyword_only = [one for one in parameters if one.kind is one.KEYWORD_ONLY]
        kinds = {one.kind for one in parameters}
        self.used: set[str] = set()  # the names of what a loss takes
        self.names = [one.name for one in (*positional, *keyword_only)]
        self.required = [one.name for one in (*positional, *keyword_only) if one.default is one.empty]
        self.any_name = not forward or inspect.Parameter.VAR_KEYWORD in kinds
        self.most = len(positional) if forward and inspect.Parameter.VAR_POSITIONAL not in kinds else math.inf
        self.least = sum(one.default is one.empty for one in positional)

    def split(self, item: Any) -> Fields:
        """The fields of an item or a batch. Raises: UsageError: it lacks what a parameter of `forward` needs."""
        if isinstance(item, (list, tuple)) and not hasattr(item, "batch_sizes"):  # a PackedSequence is one input
            return self._split_sequence(item)
        if isinstance(item, Mapping):
            return self._split_mapping(item)
        attributes = () if isinstance(item, Tensor) else (getattr(item, name, None) for name in TARGET_NAMES)
        return Fields([item], {}, next((one for one in attributes if one is not None), None))

    def _split_sequence(self, item: Any) -> Fields:
        size = len(item)
        while size > max(1, self.least) and _is_text(item[size - 1]) and not all(map(_is_text, item[:size])):
            size -= 1
        if size < self.least:
            raise UsageError(f"forward needs {', '.join(self.required)}, and an item holds {size} of them")
        if size == max(1, self.least):  # nothing is left for a target, unless forward itself takes it
            if self.least and (name := self.names[size - 1]) in TARGET_NAMES:
                return Fields(list(item[: size - 1]), {}, item[size - 1], {name: item[size - 1]})
            return Fields(list(item[:size]), {}, None, {}, "no target")
        inputs = int(min(size - 1, self.most))
        target, name = item[inputs], self.names[inputs] if inputs < len(self.names) else ""
        left = len(item) - inputs - 1
        notes = [f"{inputs} input{'s' * (inputs != 1)}, then the target, {left} more unused"] if left else []
        if taken := name in TARGET_NAMES:  # such as a detector's
            notes.append(f"forward gets the target as {name}")
        return Fields(list(item[:inputs]), {}, target, {name: target} if taken else {}, ", ".join(notes))

    def _split_mapping(self, item: Mapping[str, Any]) -> Fields:
        target = next((name for name in TARGET_NAMES if name in item), None)
        inputs = {name: value for name, value in item.items() if name != target}
        taken = [name for name in inputs if name in self.names or (self.any_name and not _is_text(inputs[name]))]
        kwargs = {name: inputs[name] for name in taken}
        missing = [name for name in self.required if name not in kwargs and name != target]
        others = [name for name, value in inputs.items() if name not in kwargs and not _is_text(value)]
        notes = [] if target else ["no target"]
        if len(missing) == len(others) == 1:
            kwargs[missing[0]] = inputs.pop(others[0])
            notes.append(f"{missing[0]} is {others[0]}")
        elif missing:
            raise UsageError(f"forward needs {', '.join(missing)}, and an item has {', '.join(item)}")
        if left := inputs.keys() - kwargs.keys() - self.used:
            notes.append(f"{' and '.join(sorted(left))} unused")
        to_forward = {target: item[target]} if target in self.names else {}
        return Fields([], kwargs, item[target] if target else None, to_forward, ", ".join(notes))  # type: ignore[arg-type]


def num_items(module: Any, batch: Any) -> int:
    """The number of items of a batch; a LightningModule or a step of one's own does not say what is what in it."""
    if hasattr(module, "num_items"):
        with suppress(UsageError):
            return int(module.num_items(batch))
    return ItemFields().split(batch).num_items()


def _is_text(value: Any) -> bool:
    texts = value if isinstance(value, (list, tuple)) else [value]
    return bool(texts) and all(isinstance(one, (str, bytes)) for one in texts)


def _length(value: Any) -> int:
    """The number of items in one field, 0 where it does not say."""
    if isinstance(value, Tensor):
        return len(value) if value.dim() else 0
    if isinstance(value, Mapping):
        return next((size for size in map(_length, value.values()) if size), 0)
    if hasattr(value, "batch_sizes"):
        return int(value.batch_sizes[0])
    return int(getattr(value, "num_graphs", 0)) or (len(value) if hasattr(value, "__len__") else 0)
