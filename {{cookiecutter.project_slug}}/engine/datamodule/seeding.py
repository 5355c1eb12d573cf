"""How a batch is fetched, in whichever process: its random draws follow from its place in the run."""

import hashlib
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from engine.launch.signals import SIGNALS


def reseed(*place: int | str) -> None:
    """Makes the random state of Python, NumPy (if in use) and torch follow from `place`, like (seed, epoch, batch)."""
    seed = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest()) >> 1
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class SeededBatch(list[int]):
    """The indices of a batch and its place, from which its random draws follow wherever it is fetched."""

    def __init__(self, indices: list[int], place: tuple[int | str, ...]) -> None:
        super().__init__(indices)
        self.place = place

    def __reduce__(self) -> Any:
        return SeededBatch, (list(self), self.place)


class SeededDataset(Dataset[Any]):
    """A dataset whose random augmentation follows from the place of the batch, whichever worker fetches it."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: SeededBatch) -> Any:
        reseed(*indices.place)
        data, which = resolve_subset(self.dataset, list(indices))
        return data.__getitems__(which) if hasattr(data, "__getitems__") else fetch_items(data, which)


def fetch_items(data: Any, which: list[int]) -> list[Any]:
    """The items of those indices; a user's own exception goes on as it is, with the item's number."""
    data, which = resolve_subset(data, which)
    items = []
    for index in which:
        try:
            items.append(data[index])
        except Exception as error:
            error.add_note(f"while fetching item {index} of {type(data).__name__}")
            raise
    return items


def resolve_subset(data: Any, which: list[int]) -> tuple[Any, list[int]]:
    """The dataset that a part was cut from, and where those items of the part are in it."""
    while isinstance(data, Subset):
        data, which = data.dataset, [data.indices[index] for index in which]
    return data, which


def delay_exit_on_signal(worker: int) -> None:
    """Lets a worker live half a minute longer after a signal to the whole process group: the run saves first."""
    for number in SIGNALS if hasattr(signal, "alarm") else ():
        signal.signal(number, lambda *_: signal.alarm(30))


class Collate:
    """Collates a list of items and leaves a whole batch as it is."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, items: Any) -> Any:
        return self.collate_fn(items) if isinstance(items, list) else items


def unwrap_subset(data: Any) -> Any:
    """The dataset that a part was cut from."""
    return unwrap_subset(data.dataset) if isinstance(data, Subset) else data


def dataset_order(data: Any, source: torch.Generator) -> torch.Tensor | None:
    """The order of a dataset that has one, or of what is left of it in a part; None where it has none."""
    if not isinstance(data, Subset):
        return data.order(source) if hasattr(data, "order") else None
    order = dataset_order(data.dataset, source)
    if order is None:
        return None
    place = torch.full((len(data.dataset),), -1)  # type: ignore[arg-type]
    place[torch.as_tensor(data.indices)] = torch.arange(len(data.indices))
    return (found := place[order])[found >= 0]
