"""Random draws that follow from a key: of a batch (seed, epoch, batch), wherever it is fetched, and of a step."""

import hashlib
import random
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import Dataset, Subset, default_collate

from engine.errors import UsageError
from engine.launch.data_parallel_rank import data_parallel_rank
from engine.launch.signals import SIGNALS


def reseed(*key: int | str) -> None:
    """Seeds the global generators of Python, NumPy and torch with a hash of `key`."""
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class SeededBatch(list[int]):
    """The indices of a batch, with the key that seeds its random draws wherever it is fetched."""

    def __init__(self, indices: list[int], seed_key: tuple[int | str, ...]) -> None:
        super().__init__(indices)
        self.seed_key = seed_key

    def __reduce__(self) -> Any:
        return SeededBatch, (list(self), self.seed_key)


class CollatedBatch(NamedTuple):
    """Marks a batch that is collated already, which may be a list itself."""

    batch: Any


class SeededDataset(Dataset[Any]):
    """A dataset whose random augmentation follows from the batch's seed key, whichever worker fetches it."""

    def __init__(self, dataset: Dataset[Any], whole: Any = None) -> None:
        """whole: how to fetch whole batches (batched_fetch.prove), or None."""
        self.dataset, self.whole = dataset, whole

    def __getitems__(self, batch: SeededBatch) -> Any:
        if not batch:
            return []
        reseed(*batch.seed_key)
        dataset, indices = resolve_subset(self.dataset, list(batch))
        if self.whole is not None and self.whole.is_valid(dataset):
            return CollatedBatch(self.whole.fetch(dataset, indices))
        return dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else fetch_items(dataset, indices)


class Collate:
    """Collates a list of items; leaves a batch that the dataset has made as it is."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, items: Any) -> Any:
        if isinstance(items, CollatedBatch):
            return items.batch
        if isinstance(items, list):
            try:
                return self.collate_fn(items) if items else None  # this process has no item of a last batch
            except RuntimeError:
                shapes = [*dict.fromkeys(str(_shapes(item)) for item in items)]
                if self.collate_fn is not default_collate or len(shapes) == 1:
                    raise
                differ = f"items of one batch differ in shape, {shapes[0]} and {shapes[1]}"
                ways = "a static method collate_fn(items) of the dataset pads them, or give --batch_size 1"
                raise UsageError(f"{differ}: {ways} --accumulate_grad_batches N") from None
        return items


def _shapes(item: Any) -> list[tuple[int, ...]]:
    """The shape of each tensor or array in an item."""
    shapes: list[tuple[int, ...]] = []
    apply_to_collection(item, (torch.Tensor, np.ndarray), lambda one: shapes.append(tuple(one.shape)))
    return shapes


def fetch_items(dataset: Any, indices: list[int]) -> list[Any]:
    """The items at `indices`. An exception of the dataset's own passes through, with the item's index as a note."""
    dataset, indices = resolve_subset(dataset, indices)
    items = []
    for index in indices:
        try:
            items.append(dataset[index])
        except Exception as error:
            error.add_note(f"while fetching item {index} of {type(dataset).__name__}")
            raise
    return items


def resolve_subset(dataset: Any, indices: list[int]) -> tuple[Any, list[int]]:
    """The dataset beneath (nested) `Subset`s, and the indices in it.

    A subclass that overrides `__getitems__`, which torch asks for beside a `__getitem__`, is such a dataset: it may
    change the items.
    """
    while isinstance(dataset, Subset) and type(dataset).__getitems__ is Subset.__getitems__:
        dataset, indices = dataset.dataset, list(map(dataset.indices.__getitem__, indices))
    return dataset, indices


def subset_indices(split: Any) -> tuple[Any, torch.Tensor]:
    """The dataset beneath (nested) `Subset`s, and the indices (items,) in it of all items of the split."""
    indices = torch.arange(len(split))
    while isinstance(split, Subset):
        split, indices = split.dataset, torch.as_tensor(np.asarray(split.indices))[indices]
    return split, indices


def unwrap_subset(dataset: Any) -> Any:
    """The dataset beneath (nested) `Subset`s."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def targets_of(dataset: Any) -> Any:
    """The dataset's attribute `targets`; None where it has none, or not one for each item."""
    targets = getattr(dataset, "targets", None)
    try:
        return targets if targets is not None and len(targets) == len(dataset) else None
    except TypeError:  # something else, or a stream
        return None


def dataset_order(dataset: Any, generator: torch.Generator) -> torch.Tensor | None:
    """The indices (items,) of a shuffled epoch by the dataset's own `order(generator)`; None where it has none."""
    if not isinstance(dataset, Subset):
        return dataset.order(generator) if hasattr(dataset, "order") else None
    order = dataset_order(dataset.dataset, generator)
    if order is None:
        return None
    position = torch.full((len(dataset.dataset),), -1)  # type: ignore[arg-type]  # of each item in the subset
    position[torch.as_tensor(dataset.indices)] = torch.arange(len(dataset.indices))
    return (positions := position[order])[positions >= 0]


def delay_exit_on_signal(worker: int) -> None:
    """Lets a worker outlive a signal to its process group by 30 seconds: the main process saves first."""
    for number in SIGNALS if hasattr(signal, "alarm") else ():
        signal.signal(number, lambda *_: signal.alarm(30))


class SeedEachStep(Callback):
    """Seeds each step (dropout, noise) from (seed, step, rank), so that a resumed run repeats its draws."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        reseed("train", self.seed, trainer.fit_loop.total_batch_idx, data_parallel_rank(trainer).rank)

    def _seed(self, trainer: Any, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        stage = trainer.state.stage.dataloader_prefix  # "val", "test" or "predict"
        reseed(stage, self.seed, batch_idx, data_parallel_rank(trainer).rank)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _seed  # type: ignore[assignment]
