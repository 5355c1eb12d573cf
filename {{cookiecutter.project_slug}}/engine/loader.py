"""Batches in an order that a resumed run repeats: every random draw is a function of the seed and a place."""

import atexit
import hashlib
import random
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


def reseed(*place: int | str) -> None:
    """Makes the random state of Python, NumPy (if in use) and torch follow from `place`, like (seed, epoch, batch)."""
    seed = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest()) >> 1
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class OrderedLoader:
    """Loads batches of a dataset, and can stop and go on within an epoch, for any number of workers.

    A dataset's `__getitems__(indices)` may return a whole batch (anything but a list); a list is collated.

    dataset: map-style or iterable. An iterable one splits itself over ranks and workers, and may keep its own state
        (`state_dict`, `load_state_dict`), which is exact with num_workers=0.
    batch_size: items a batch and rank. The last batch is smaller; it is never a single item, unless there is only one.
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
        self.data, self.batch_size, self.seed, self.shuffle, self.weights = (
            dataset,
            batch_size,
            seed,
            shuffle,
            weights,
        )
        self.epoch, self.rank, self.world_size = epoch, rank, world_size
        self.iterable = isinstance(dataset, IterableDataset)
        self._resume: dict[str, Any] = {}
        self._now = {"epoch": 0, "items": 0}
        order: dict[str, Any] = {"batch_size": batch_size} if self.iterable else {"batch_sampler": _Batches(self)}
        self.loader = DataLoader(
            dataset if self.iterable else _Placed(dataset),
            **order,
            num_workers=num_workers,
            collate_fn=_Collate(collate_fn),
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_outlive_signals,
            generator=torch.Generator().manual_seed(seed),  # its own: the global one stays as it is
        )

        if num_workers:
            atexit.register(_close, weakref.ref(self.loader))

    def __len__(self) -> int:
        if self.iterable:
            return len(self.loader)  # TypeError where the dataset has no length, as Lightning expects
        return len(self.cuts()) - 1

    def __iter__(self) -> Iterator[Any]:
        # A generator: the epoch is asked for when the first batch is, not when Lightning builds its iterator.
        resume, self._resume = self._resume, {}
        epoch = self.epoch()
        items = resume.get("items", 0) if resume.get("epoch") == epoch else 0
        self._now = {"epoch": epoch, "items": items}
        batches = iter(self.loader)
        while True:
            if self.iterable:
                reseed("stream", self.seed, epoch, self._now["items"], self.rank)
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._now["items"] += self.batch_size * self.world_size
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, in items of all ranks, and an iterable dataset's own state."""
        own = {"dataset": self.data.state_dict()} if self.iterable and hasattr(self.data, "state_dict") else {}
        return {**self._now, **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the place again when the next epoch is begun with the same number."""
        self._resume = state
        if "dataset" in state:
            self.data.load_state_dict(state["dataset"])  # type: ignore[attr-defined]

    def cuts(self) -> list[int]:
        """Where each global batch begins in the order, and where the last one ends."""
        each, total = self.batch_size * self.world_size, -(-len(self.data) // self.world_size) * self.world_size  # type: ignore[arg-type]
        cuts = [*range(0, total, each), total]
        if len(cuts) > 2 and total - cuts[-2] == self.world_size and self.batch_size > 2:
            cuts[-2] -= self.world_size  # batch norm cannot learn from a batch of one: give it a companion
        return cuts

    def batches(self) -> Iterator[list[int]]:
        """The indices of this rank's batches from the present place on."""
        epoch, start, cuts = self._now["epoch"], self._now["items"], self.cuts()
        order = self._order(epoch, len(self.data))  # type: ignore[arg-type]
        order += order[: cuts[-1] - len(order)]
        each = self.batch_size * self.world_size
        for number in range(start // each, len(cuts) - 1):
            begin, end = cuts[number], cuts[number + 1]
            yield _Indices(
                order[begin + self.rank : end : self.world_size], ("batch", self.seed, epoch, number, self.rank)
            )

    def _order(self, epoch: int, length: int) -> list[int]:
        if self.weights is None and not self.shuffle:
            return list(range(length))
        source = torch.Generator().manual_seed((self.seed << 20) + epoch)
        if self.weights is None:
            return torch.randperm(length, generator=source).tolist()
        return torch.multinomial(self.weights, length, replacement=True, generator=source).tolist()


class _Batches:
    """What the DataLoader asks for the batches; it never leaves the main process."""

    def __init__(self, loader: OrderedLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[int]]:
        return self.loader.batches()

    def __len__(self) -> int:
        return len(self.loader)


class _Indices(list[int]):
    """The indices of a batch and its place, from which its random draws follow wherever it is fetched."""

    def __init__(self, indices: list[int], place: tuple[int | str, ...]) -> None:
        super().__init__(indices)
        self.place = place

    def __reduce__(self) -> Any:
        return _Indices, (list(self), self.place)


class _Placed(Dataset[Any]):
    """A dataset whose random augmentation follows from the place of the batch, whichever worker fetches it."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: _Indices) -> Any:
        reseed(*indices.place)
        data: Any = self.dataset
        which: list[int] = list(indices)
        while isinstance(data, Subset):
            data, which = data.dataset, [data.indices[index] for index in which]
        if hasattr(data, "__getitems__"):
            return data.__getitems__(which)
        return [_item(data, index) for index in which]


def _item(data: Dataset[Any], index: int) -> Any:
    try:
        return data[index]
    except Exception as error:  # the user's own goes on as it is, with the item's number
        error.add_note(f"while fetching item {index} of {type(data).__name__}")
        raise


def _outlive_signals(worker: int) -> None:
    """Lets a worker live for half a minute after a signal to the whole process group: the run saves first."""
    for number in SIGNALS if hasattr(signal, "alarm") else ():
        signal.signal(number, lambda *_: signal.alarm(30))


def _close(loader: "weakref.ref[DataLoader[Any]]") -> None:
    """Sends the workers home when an exception ends the program; multiprocessing would wait for them."""
    iterator = getattr(loader(), "_iterator", None)  # there is no public way
    if iterator is not None:
        iterator._shutdown_workers()


class _Collate:
    """Collates a list of items and leaves a whole batch as it is."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, items: Any) -> Any:
        return self.collate_fn(items) if isinstance(items, list) else items
