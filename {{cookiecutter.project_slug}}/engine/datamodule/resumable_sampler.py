"""ResumableBatchSampler: the indices of each batch of an epoch, a function of the seed, the epoch and the rank."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from engine.datamodule.seeding import SeededBatch, dataset_order, unwrap_subset
from engine.errors import UsageError


@dataclass(eq=False)
class ResumableBatchSampler(Sampler[list[int]]):
    """Yields this rank's batches of epoch `epoch` from batch `start` on; both are set before each iteration.

    Each rank takes every `world_size`-th item of a global batch. All ranks take the same number of steps: in training
    the order is padded with its own beginning, elsewhere a rank's last batch may be smaller, or empty. Arguments: see
    ResumableLoader.
    """

    dataset: Dataset[Any]
    batch_size: int
    seed: int
    shuffle: bool
    weights: torch.Tensor | None
    rank: int
    world_size: int
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
