"""Statistics of the items of a split: classes, ranges of values, unreadable items, duplicates."""

import hashlib
import itertools
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from engine.datamodule.class_balance import known_classes
from engine.datamodule.item_fields import Fields
from engine.datamodule.seeding import reseed, subset_indices
from engine.datamodule.splits import item_ids

STREAM_ITEMS = 1000
_TWICE = 8  # items that are read twice, to see whether they are drawn at random
_NUMBERS = 4_000_000  # that are held at a time


class FieldStatistics:
    """Statistics of one entry of the items: an input or a target.

    kinds: how many items are of each dtype and shape. low, high: of the finite numbers. nan, inf: how many
    numbers are none. lengths: of texts. columns: of vectors (F,), the least and the greatest value and the number of
    NaN in each, (F,) each; None of anything else.
    """

    def __init__(self, is_text: bool) -> None:
        self.is_text, self.kinds, self.lengths = is_text, Counter[str](), list[int]()
        self.low, self.high = math.inf, -math.inf
        self.columns: tuple[Tensor, Tensor, Tensor] | None = None
        self.count = self.nan = self.inf = self.items = 0
        self._total = self._squares = 0.0
        self._held: list[Tensor] = []

    def add(self, value: Any) -> None:
        """Takes the entry of one item."""
        self.items += 1
        if not isinstance(value, (Tensor, np.ndarray, np.generic, int, float)):
            self.kinds["text" if isinstance(value, str) else type(value).__name__] += 1
            self.lengths += [len(value)] if isinstance(value, str) else []
            return
        tensor = torch.as_tensor(value)
        self.kinds[f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"] += 1
        if self.is_text and tensor.dim() == 1 and not tensor.is_floating_point():
            self.lengths.append(int((tensor != 0).sum()))
        if self._held and (tensor.shape, tensor.dtype) != (self._held[0].shape, self._held[0].dtype):
            self.flush()
        self._held.append(tensor)
        if len(self._held) * tensor.numel() > _NUMBERS or len(self._held) == 1000:
            self.flush()

    def flush(self) -> None:
        """Counts what is held."""
        if not self._held or self._held[0].is_complex() or not self._held[0].numel():
            self._held = []
            return
        numbers = torch.stack(self._held).double()  # (N, ...)
        self._held = []
        finite = numbers[numbers.isfinite()]
        nan = numbers.isnan()
        self.nan, self.inf = self.nan + int(nan.sum()), self.inf + int(numbers.isinf().sum())
        if len(finite):
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        self.count += len(finite)
        self._total, self._squares = self._total + float(finite.sum()), self._squares + float(finite.square().sum())
        if numbers.dim() == 2 and not self.is_text:
            found = numbers.where(~nan, math.inf).amin(0), numbers.where(~nan, -math.inf).amax(0), nan.sum(0)
            if self.columns is None:
                self.columns = found
            elif len(self.columns[0]) == len(found[0]):
                (low, high, missing), before = found, self.columns
                self.columns = low.minimum(before[0]), high.maximum(before[1]), missing + before[2]

    def mean_std(self) -> tuple[float, float]:
        """Of the finite numbers, if there are any."""
        mean = self._total / self.count
        return mean, math.sqrt(max(0.0, self._squares / self.count - mean**2))


class SplitStatistics:
    """What was found in a split.

    length: items, None of a stream that does not say. looked: how many of them were read. broken: the name of each that
    could not be, and a line with its name that says why. values: of each entry. classes: items of each class (of masks:
    pixels), of all items where the dataset has them in `targets`. numbers: targets that are single numbers. drawn: the
    items are drawn at random. contents: name -> what tells an item from others, b"" of a file, which is still to be
    read. targets: name -> its target.
    """

    def __init__(self, name: str) -> None:
        self.name, self.looked, self.drawn = name, 0, False
        self.length: int | None = None
        self.broken: list[tuple[str, str]] = []
        self.values: dict[str, FieldStatistics] = {}
        self.classes: Counter[int] = Counter()
        self.numbers: list[float] = []
        self.contents: dict[str, bytes] = {}
        self.targets: dict[str, Any] = {}


def read(data: Any, name: str, seconds: float, check_all: bool) -> SplitStatistics | None:
    """Reads a split for some seconds, or all of it; of a stream, STREAM_ITEMS at most. None where there is no split.

    An exception of the dataset's own passes through where no item can be read.
    """
    split = data.split(name)
    if split is None:
        return None
    found, is_stream = SplitStatistics(name), isinstance(split, IterableDataset)
    found.length = len(split) if hasattr(split, "__len__") else None
    known = None if is_stream else known_classes(split)
    if known is not None:
        found.classes = Counter(known[known >= 0].tolist())
    is_text, num_classes = data.attribute("decode") is not None, data.attribute("num_classes")
    end = math.inf if check_all else time.monotonic() + seconds
    error: Exception | None = None
    for place, label, item, again in _stream(split, name) if is_stream else _items(split, name, data.seed):
        if isinstance(item, Exception):
            error, reason = item, " ".join(str(item).split())
            named_there = os.path.isfile(label) and label in reason
            found.broken.append((label, reason if named_there else f"{label}: {type(item).__name__}: {reason}"))
        else:
            fields = data.item_fields.split(item)
            inputs = named(fields)
            found.looked += 1
            for key, value in (inputs | named_targets(fields)).items():
                found.values.setdefault(key, FieldStatistics(is_text)).add(value)
            found.drawn |= again is not None and _content(inputs) != _content(named(data.item_fields.split(again)))
            if not found.drawn and (content := _content(inputs)) is not None:
                found.contents[label] = content
            found.targets[label] = int(known[place]) if known is not None else _content(fields.target)
            if known is None:
                _count_target(found, fields.target, num_classes)
        if time.monotonic() > end or (is_stream and not check_all and place + 1 == STREAM_ITEMS):
            break
    if error is not None and not found.looked:
        raise error
    for values in found.values.values():
        values.flush()
    names = None if is_stream else item_ids(split)
    if names and os.path.isfile(names[0]):  # those that were not looked at too
        found.targets |= {} if known is None else dict(zip(names, known.tolist(), strict=True))
        broken = {name for name, _ in found.broken}
        found.contents = {name: b"" for name in names if name not in broken}
    elif found.drawn:
        found.contents = {}
    return found


def named(fields: Fields) -> dict[str, Any]:
    """The inputs by name."""
    many = len(fields.args) > 1
    return {f"input {at}" if many else "input": one for at, one in enumerate(fields.args, 1)} | fields.kwargs


def named_targets(fields: Fields) -> dict[str, Any]:
    """The target, or those of several heads, by name."""
    if isinstance(fields.target, dict):
        return {f"target {name}": one for name, one in fields.target.items()}
    return {} if fields.target is None else {"target": fields.target}


def _items(split: Any, name: str, seed: int) -> Iterator[tuple[int, str, Any, Any]]:
    """Place, name and item of each, or the exception that it raises, in random order; the first ones once more."""
    names, (dataset, indices) = item_ids(split), subset_indices(split)
    generator = torch.Generator().manual_seed(seed)
    in_chunks = hasattr(dataset, "order")  # each is read once only where they are asked for one after the other
    order = torch.arange(len(indices)) if in_chunks else torch.randperm(len(indices), generator=generator)
    for count, place in enumerate(order.tolist()):
        index = int(indices[place])
        label = names[place] if names else f"{name} item {index}"
        try:
            item, again = (_fetch(dataset, index, draw) if draw < 1 or count < _TWICE else None for draw in range(2))
        except Exception as error:  # whatever a dataset raises for an item that it cannot read
            item, again = error, None
        yield place, label, item, again


def _fetch(dataset: Any, index: int, draw: int) -> Any:
    reseed("preview", index, draw)
    if getattr(type(dataset), "__getitem__", Dataset.__getitem__) is not Dataset.__getitem__:
        return dataset[index]
    batch = dataset.__getitems__([index])
    return batch[0] if isinstance(batch, list) else apply_to_collection(batch, Tensor, lambda one: one[0])


def _stream(split: Any, name: str) -> Iterator[tuple[int, str, Any, Any]]:
    """The items of a stream, which ends at the first item that cannot be read."""
    reseed("preview", 0, 0)
    items = iter(split)
    for place in itertools.count():
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:
            yield place, f"{name} item {place}", error, None
            return
        yield place, f"{name} item {place}", item, None


def _count_target(found: SplitStatistics, target: Any, num_classes: Any) -> None:
    """Counts the class of an item, or of each pixel of a mask, or keeps its number."""
    if not isinstance(target, (Tensor, np.ndarray, np.generic, int, float)):
        return
    tensor = torch.as_tensor(target)
    if tensor.numel() == 1 and (tensor.is_floating_point() or num_classes == 1):
        found.numbers.append(float(tensor))
    elif isinstance(num_classes, int) and not tensor.is_floating_point() and not tensor.is_complex():
        counts = tensor[(tensor >= 0) & (tensor < num_classes)].long().bincount()
        found.classes.update({number: count for number, count in enumerate(counts.tolist()) if count})


def _content(value: Any) -> bytes | None:
    """A key that differs for different values; None where one holds what is no number or text."""
    parts, queue = list[bytes](), [value]
    while queue:
        match one := queue.pop():
            case dict():
                queue += [*one.values()]
            case list() | tuple():
                queue += one
            case str() | int() | float() | np.generic():
                parts.append(repr(one).encode(errors="backslashreplace"))
            case Tensor() | np.ndarray():
                tensor = torch.as_tensor(one).detach().contiguous()
                parts += [repr(tensor.shape).encode(), tensor.flatten().view(torch.uint8).numpy().tobytes()]
            case _:
                return None
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest() if parts else None


def duplicates(splits: list[SplitStatistics]) -> list[list[tuple[str, str]]]:
    """The groups of items with the same content: (split, name) of each. Files of different sizes are not read."""
    groups = defaultdict[Any, list[tuple[str, str]]](list)
    sizes = defaultdict[int, list[tuple[str, str]]](list)
    for split in splits:
        for name, content in split.contents.items():
            if content:
                groups[content].append((split.name, name))
            elif os.path.isfile(name):
                sizes[os.path.getsize(name)].append((split.name, name))
    for alike in (some for some in sizes.values() if len(some) > 1):
        for split_name, name in alike:
            with open(name, "rb") as file:
                groups[hashlib.file_digest(file, "blake2b").digest()].append((split_name, name))
    return [group for group in groups.values() if len(group) > 1]
