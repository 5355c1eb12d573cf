"""ResumableLoader: batches in an order that a resumed run repeats, from any batch of an epoch on; and its sampler."""

import copy
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities.data import sized_len
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from engine.datamodule import seeding
from engine.datamodule.batched_fetch import BatchedFetch
from engine.datamodule.seeding import Collate, SeededBatch, SeededDataset, dataset_order, reseed, unwrap_subset
from engine.errors import UsageError
from engine.lightning_compat import shut_down_workers


class ResumableLoader:
    """A DataLoader that resumes within an epoch, with any number of workers.

    A dataset's `__getitems__(indices)` may return a whole batch (anything but a list); a list is collated.

    dataset: map-style or iterable. An iterable one splits itself over ranks and workers, and may keep its own state
        (`state_dict`, `load_state_dict`), which is exact with num_workers=0. A map-style one that is read in chunks
        may have an `order(generator)` of its own, the indices (items,) of a shuffled epoch; each rank then takes a
        stretch of it, so that few chunks are read by two ranks.
    batch_size: items a batch and rank.
    current_epoch: called when a training epoch starts, for its number; None for other loaders.
    accumulate: batches of an optimizer step.
    whole: how to fetch whole batches of a dataset without `__getitems__`; default_collate would make the same.
    sampling: further arguments of the ResumableBatchSampler of a map-style dataset.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        seed: int,
        current_epoch: Callable[[], int] | None = None,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        whole: BatchedFetch | None = None,
        **sampling: Any,
    ) -> None:
        # Not `dataset` and `sampler`: what has these, Lightning takes for a DataLoader that it may rebuild.
        self.data, self.seed, self.rank, self.world_size = dataset, seed, rank, world_size
        self.global_batch_size, self.current_epoch, self.accumulate = batch_size * world_size, current_epoch, accumulate
        self.iterable = isinstance(dataset, IterableDataset)
        self.balanced = sampling.get("weights") is not None
        self._resume_from: dict[str, Any] = {}
        self._states: deque[dict[str, Any]] = deque([{"epoch": 0, "batches": 0}], maxlen=3)  # after the latest batches
        self._initial_state = self._stream_state()
        # Of a stream without a length Lightning fetches the next batch first, which a collate_fn may put in its place.
        self._read_ahead = self.iterable and num_workers == 0 and sized_len(dataset) is None
        batching: dict[str, Any] = {"dataset": dataset, "batch_size": batch_size}
        if not self.iterable:
            self.epoch_sampler = ResumableBatchSampler(dataset, batch_size, seed, rank, world_size, **sampling)
            batching = {"dataset": SeededDataset(dataset, whole), "batch_sampler": self.epoch_sampler}
        self.loader = DataLoader(
            **batching,
            num_workers=num_workers,
            collate_fn=Collate(collate_fn),
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=seeding.delay_exit_on_signal,
            generator=torch.Generator().manual_seed(seed),  # its own: the global one stays as it is
        )
        self._fetches_here = not (self.iterable or num_workers or self.loader.pin_memory)
        self.close = weakref.finalize(self, shut_down_workers, self.loader)  # by hand, or by the garbage collector

    def __len__(self) -> int:
        return len(self.loader)  # TypeError where a stream has no length, as Lightning expects

    def __iter__(self) -> Iterator[Any]:
        # A generator: the epoch is asked for when the first batch is, not when Lightning builds its iterator.
        resume, self._resume_from = self._resume_from, {}
        yield from self.batches(*self._start(resume), resume)

    def batches(self, epoch: int, start: int, resume: dict[str, Any] | None = None) -> Iterator[Any]:
        """The batches of an epoch from number `start` on. resume: of a stream, the state that it had there."""
        self._states.append({"epoch": epoch, "batches": start})
        if not self.iterable:
            self.epoch_sampler.epoch, self.epoch_sampler.start = epoch, start
        if self._initial_state:
            self.data.load_state_dict((resume if resume and start else self._initial_state)["dataset"])  # type: ignore[attr-defined]
        batches = self._fetched_here() if self._fetches_here else iter(self.loader)
        skip = start if self.iterable and not self._initial_state else 0  # a stream without a state is read again
        for number in itertools.count(start - skip):
            if self.iterable:
                reseed("stream", self.seed, epoch, number, self.rank)
            try:
                batch = next(batches)
            except StopIteration:
                if self.iterable and self.current_epoch:
                    self._check_length(number)
                return
            if number >= start:
                self._states.append({"epoch": epoch, "batches": number + 1, **self._stream_state()})
                yield _copy(batch) if self._read_ahead else batch

    def _fetched_here(self) -> Iterator[Any]:
        """What the DataLoader would yield without workers; it takes some 20 us longer."""
        for indices in self.epoch_sampler:
            yield self.loader.collate_fn(self.loader.dataset.__getitems__(indices))  # type: ignore[attr-defined]

    def check_resume(self) -> None:
        """Raises UsageError where the run stopped within an epoch that these flags do not go on with."""
        self._start(self._resume_from)

    def _start(self, resume: dict[str, Any]) -> tuple[int, int]:
        """The epoch that begins, and its first batch."""
        epoch = self.current_epoch() if self.current_epoch else 0
        start = resume["batches"] if resume.get("epoch") == epoch else 0
        if start and start < resume["of"] and self._cuts_otherwise(resume, start):
            ranks = resume.get("ranks", self.world_size)
            before = f"--batch_size {resume['each'] // ranks} on {ranks} device{'s' * (ranks > 1)}"
            raise UsageError(f"the run stopped within an epoch of {before}: go on with these until the epoch's end")
        if start and start >= resume["of"] and resume.get("ranks", self.world_size) < self.world_size:
            devices = f"{resume['ranks']} device{'s' * (resume['ranks'] > 1)}"
            raise UsageError(f"the run stopped before the end of an epoch on {devices}: go on with these until its end")
        if start and resume.get("balanced", self.balanced) != self.balanced:
            before = "--balanced" if resume["balanced"] else "--no-balanced"
            raise UsageError(f"the run stopped within an epoch of {before}: go on with that until the epoch's end")
        if start and resume.get("accumulate", self.accumulate) != self.accumulate:
            before = f"--accumulate_grad_batches {resume['accumulate']}"
            raise UsageError(f"the run stopped within an epoch of {before}: go on with that until the epoch's end")
        return epoch, start

    def _cuts_otherwise(self, resume: dict[str, Any], start: int) -> bool:
        """Whether the batches from `start` on are not the rest of the epoch that `resume` is of."""
        if resume["each"] != self.global_batch_size:
            return True
        if resume.get("ranks", self.world_size) == self.world_size:
            return False
        return self.iterable or self.epoch_sampler.chunked or self.epoch_sampler.batch_bounds[start] != resume["items"]

    def _check_length(self, batches: int) -> None:
        """Raises UsageError: a stream has fewer batches than it says, and Lightning waits in vain for their end."""
        if batches < (length := sized_len(self) or 0):
            says = f"{type(self.data).__name__} says that it has {len(self.data)} items"  # type: ignore[arg-type]
            gave = f"{says}, which are {length} batches, and gave {batches}"
            raise UsageError(f"{gave}: no validation would ever follow; correct its __len__, or leave it out")

    def _stream_state(self) -> dict[str, Any]:
        if not self.iterable or not hasattr(self.data, "state_dict"):
            return {}
        return {"dataset": copy.deepcopy(self.data.state_dict())}

    def state_after(self, batches: int) -> dict[str, Any]:
        """The state after that many batches of the epoch, for `load_state_dict`: Lightning fetches a batch ahead.

        It holds "epoch", "batches" and "items" done by all "ranks", "each" (items of a global batch), "accumulate",
        "balanced", "of" (batches of the epoch) and, of a stream that has one, the state of the "dataset".
        """
        state = next((state for state in self._states if state["batches"] == batches), self._states[-1])
        done = state["batches"]
        of, items = (batches + 1, 0) if self.iterable else (len(self), self.epoch_sampler.batch_bounds[: done + 1][-1])
        cut = {"each": self.global_batch_size, "ranks": self.world_size, "items": items, "of": of}
        return {**state, **cut, "accumulate": self.accumulate, "balanced": self.balanced}

    def state_dict(self) -> dict[str, Any]:
        """Does nothing: DInterface keeps the state. Lightning asks whether a loader has this method."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from `state` when the epoch that it is of begins."""
        self._resume_from = state or self._resume_from


def _copy(batch: Any) -> Any:
    """A batch whose tensors and arrays have memory of their own."""
    kinds = (torch.Tensor, np.ndarray)
    return apply_to_collection(batch, kinds, lambda one: one.clone() if torch.is_tensor(one) else one.copy())


@dataclass(eq=False)
class ResumableBatchSampler(Sampler[list[int]]):
    """Yields this rank's batches of epoch `epoch` from batch `start` on; both are set before each iteration.

    Each rank takes every `world_size`-th item of a global batch. All ranks take the same number of steps: in training
    the order is padded with its own beginning, elsewhere a rank's last batch may be smaller, or empty.

    batch_size: items a batch and rank. The last batch is smaller; it is a single item only where batches are 1 or 2.
    rank, world_size: of the data-parallel processes.
    shuffle: a new order each epoch, from (seed, epoch).
    weights: (items,), how often to draw each item, with replacement; overrides `shuffle`.
    pad: repeat items where the ranks' shares are not of one size; or else a batch may be None (prepare_evaluation).
    drop_last: leave out a last batch that is smaller.
    """

    dataset: Dataset[Any]
    batch_size: int
    seed: int
    rank: int
    world_size: int
    shuffle: bool = False
    weights: torch.Tensor | None = None
    pad: bool = True
    drop_last: bool = False
    epoch: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        self.chunked = hasattr(unwrap_subset(self.dataset), "order")
        if self.weights is not None and self.chunked:
            name = type(unwrap_subset(self.dataset)).__name__
            raise UsageError(f"--balanced: {name} is read in chunks, not item by item")

    def __len__(self) -> int:
        return len(self.batch_bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        order, end = self._order(), self.batch_bounds[-1]
        if end > len(order):
            order = order.repeat(-(-end // len(order)))
        if self.shuffle and self.chunked and self.world_size > 1:  # a stretch for each rank: few chunks are read twice
            order = order[:end].view(self.world_size, -1).T.flatten()
        for number in range(self.start, len(self)):
            seed_key = ("batch", self.seed, self.epoch, number, self.rank)
            indices = order[self._rank_slice(number)].tolist()
            if not self.pad:
                indices = indices[: int((self.positions(number) < len(self.dataset)).sum())]  # type: ignore[arg-type]
            yield SeededBatch(indices, seed_key)

    def positions(self, number: int) -> torch.Tensor:
        """The positions of this rank's items of a batch in the order; from the dataset's length on they are padding."""
        part = self._rank_slice(number)
        return torch.arange(part.start, part.stop, part.step)

    @cached_property
    def batch_bounds(self) -> list[int]:
        """The position at which each global batch begins, and the one at which the last batch ends."""
        global_size, total = self.batch_size * self.world_size, -(-len(self.dataset) // self.world_size)  # type: ignore[arg-type]
        total *= self.world_size
        if self.drop_last:
            total -= total % global_size
        bounds = [*range(0, total, global_size), total]
        if len(bounds) > 2 and total - bounds[-2] == self.world_size and self.batch_size > 2:
            bounds[-2] -= self.world_size  # batch norm cannot train on a batch of one: give it a companion
        return bounds

    def _rank_slice(self, number: int) -> slice:
        begin, end = self.batch_bounds[number : number + 2]
        return slice(begin + self.rank, end, self.world_size)

    def _order(self) -> torch.Tensor:
        """Indices (items,) of the epoch: a tensor, since ten million Python integers take seconds and 400 MB."""
        length: int = len(self.dataset)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        if self.weights is not None:
            return torch.multinomial(self.weights, length, replacement=True, generator=generator)
        if not self.shuffle:
            return torch.arange(length)
        order = dataset_order(self.dataset, generator)
        return torch.randperm(length, generator=generator) if order is None else order
