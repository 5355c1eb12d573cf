"""Batches in an order that a resumed run repeats: every random draw is a function of the seed and a place."""

import copy
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from engine.datamodule.seeding import (
    Collate,
    SeededBatch,
    SeededDataset,
    dataset_order,
    delay_exit_on_signal,
    reseed,
    unwrap_subset,
)
from engine.errors import UsageError
from engine.lightning_compat import shut_down_workers


class OrderedLoader:
    """Loads batches of a dataset, and can stop and go on within an epoch, for any number of workers.

    A dataset's `__getitems__(indices)` may return a whole batch (anything but a list); a list is collated.

    dataset: map-style or iterable. An iterable one splits itself over ranks and workers, and may keep its own state
        (`state_dict`, `load_state_dict`), which is exact with num_workers=0. A map-style one that is read in chunks
        may have an `order(generator)` of its own, the indices (items,) of a shuffled epoch; each rank then takes a
        stretch of it, so that it reads few chunks that another one reads.
    batch_size: items a batch and rank. The last batch is smaller; it is a single item only where batches are 1 or 2.
    shuffle: a new order each epoch, from (seed, epoch).
    weights: shape (items,), how often to draw each item, with replacement; overrides `shuffle`.
    epoch: called when an epoch starts, for its number.
    rank, world_size: this process takes each `world_size`-th item of every global batch; the order is filled up with
        its own beginning so that all ranks take the same number of steps.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = False,
        weights: torch.Tensor | None = None,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        if weights is not None and hasattr(unwrap_subset(dataset), "order"):
            raise UsageError(f"--balanced: {type(unwrap_subset(dataset)).__name__} is read in chunks, not item by item")
        self.data, self.batch_size = dataset, batch_size
        self.seed, self.shuffle, self.weights = seed, shuffle, weights
        self.epoch, self.rank, self.world_size = epoch, rank, world_size
        self.iterable = isinstance(dataset, IterableDataset)
        self._resume: dict[str, Any] = {}
        self._places: deque[dict[str, Any]] = deque([{"epoch": 0, "batches": 0}], maxlen=3)
        self._fresh = self._own_state()
        order: dict[str, Any] = (
            {"batch_size": batch_size} if self.iterable else {"batch_sampler": _Batches(weakref.proxy(self))}
        )
        self.loader = DataLoader(
            dataset if self.iterable else SeededDataset(dataset),
            **order,
            num_workers=num_workers,
            collate_fn=Collate(collate_fn),
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=delay_exit_on_signal,
            generator=torch.Generator().manual_seed(seed),  # its own: the global one stays as it is
        )
        self.close = weakref.finalize(
            self, shut_down_workers, self.loader
        )  # called by hand, or when it is no longer needed

    def __len__(self) -> int:
        if self.iterable:
            return len(self.loader)  # TypeError where the dataset has no length, as Lightning expects
        return len(self.cuts) - 1

    def __iter__(self) -> Iterator[Any]:
        # A generator: the epoch is asked for when the first batch is, not when Lightning builds its iterator.
        resume, self._resume = self._resume, {}
        epoch = self.epoch()
        begin = resume["batches"] if resume.get("epoch") == epoch else 0
        if begin and resume["each"] != self.batch_size * self.world_size and begin < resume["of"]:
            raise UsageError(
                f"the run stopped within an epoch of {resume['each']} items a step: go on with that --batch_size and "
                "number of devices until the epoch's end"
            )
        self._places.append({"epoch": epoch, "batches": begin})
        if self._fresh:
            self.data.load_state_dict((resume if begin else self._fresh)["dataset"])  # type: ignore[attr-defined]
        batches = iter(self.loader)
        skip = begin if self.iterable and not self._fresh else 0  # a stream without a state is read again up to there
        for number in itertools.count(begin - skip):
            if self.iterable:
                reseed("stream", self.seed, epoch, number, self.rank)
            try:
                batch = next(batches)
            except StopIteration:
                return
            if number >= begin:
                self._places.append({"epoch": epoch, "batches": number + 1, **self._own_state()})
                yield batch

    def _own_state(self) -> dict[str, Any]:
        if not self.iterable or not hasattr(self.data, "state_dict"):
            return {}
        return {"dataset": copy.deepcopy(self.data.state_dict())}

    def place(self, batches: int) -> dict[str, Any]:
        """The place after so many batches of the epoch: one may have been fetched ahead."""
        found = next((one for one in self._places if one["batches"] == batches), self._places[-1])
        of = -1 if self.iterable else len(self)
        return {**found, "each": self.batch_size * self.world_size, "of": of if of >= 0 else batches + 1}

    def state_dict(self) -> dict[str, Any]:
        """The place; for Lightning, which asks whether a loader has one. DInterface is what keeps it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a place again when the epoch of that number is begun."""
        self._resume = state or self._resume

    def numbers(self, batch: int) -> torch.Tensor:
        """Where this rank's items of a batch stand in the order; from the dataset's length on, they only fill it up."""
        begin, end = self.cuts[batch : batch + 2]
        return torch.arange(begin + self.rank, end, self.world_size)

    @cached_property
    def cuts(self) -> list[int]:
        """Where each global batch begins in the order, and where the last one ends."""
        each, total = self.batch_size * self.world_size, -(-len(self.data) // self.world_size) * self.world_size  # type: ignore[arg-type]
        cuts = [*range(0, total, each), total]
        if len(cuts) > 2 and total - cuts[-2] == self.world_size and self.batch_size > 2:
            cuts[-2] -= self.world_size  # batch norm cannot learn from a batch of one: give it a companion
        return cuts

    def batches(self) -> Iterator[list[int]]:
        """The indices of this rank's batches from the present place on."""
        epoch, start, cuts = self._places[-1]["epoch"], self._places[-1]["batches"], self.cuts
        order = self._order(epoch, len(self.data))  # type: ignore[arg-type]
        if cuts[-1] > len(order):  # filled up from its beginning
            order = order.repeat(-(-cuts[-1] // len(order)))
        if (
            self.shuffle and self.world_size > 1 and hasattr(unwrap_subset(self.data), "order")
        ):  # a stretch for each rank
            order = order[: cuts[-1]].view(self.world_size, -1).T.flatten()
        for number in range(start, len(cuts) - 1):
            mine = order[cuts[number] + self.rank : cuts[number + 1] : self.world_size]
            yield SeededBatch(mine.tolist(), ("batch", self.seed, epoch, number, self.rank))

    def _order(self, epoch: int, length: int) -> torch.Tensor:
        """SeededBatch, (length,): a tensor, since ten million Python numbers take seconds and 400 MB."""
        if self.weights is None and not self.shuffle:
            return torch.arange(length)
        source = torch.Generator().manual_seed((self.seed << 20) + epoch)
        if self.weights is None:
            own = dataset_order(self.data, source)
            return torch.randperm(length, generator=source) if own is None else own
        return torch.multinomial(self.weights, length, replacement=True, generator=source)


def drop_padding(loader: Any, batch: Any, number: int) -> Any:
    """A batch of that number less the items that only fill it up, for all ranks to take as many steps; None: no item.

    Every tensor in it that is as long as the batch is cut.
    """
    if not isinstance(loader, OrderedLoader) or loader.iterable or loader.world_size == 1:
        return batch
    numbers = loader.numbers(number)
    own = int((numbers < len(loader.data)).sum())  # type: ignore[arg-type]
    if own in (0, len(numbers)):
        return batch if own else None
    return apply_to_collection(batch, torch.Tensor, lambda one: one[:own] if one.shape[:1] == numbers.shape else one)


class _Batches:
    """What the DataLoader asks for the batches; it never leaves the main process.

    loader: a weak one, or `close`, which waits for the loader's end, would itself keep it and its data in memory.
    """

    def __init__(self, loader: OrderedLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[int]]:
        return self.loader.batches()

    def __len__(self) -> int:
        return len(self.loader)
