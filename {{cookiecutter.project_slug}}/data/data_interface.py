"""DInterface: any Dataset class -> training, validation and test part -> loaders."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from engine.cli import plugins
from engine.cli.settings import Settings
from engine.datamodule import class_balance
from engine.datamodule.ordered_loader import OrderedLoader
from engine.datamodule.seeding import unwrap_subset
from engine.datamodule.split_datamodule import SplitDataModule
from engine.errors import UsageError
from engine.launch.data_parallel import data_parallel_rank


class DInterface(SplitDataModule):
    """Builds the parts of a dataset and loads them.

    A constructor with `split` is called once a part, with "train", "val" and "test". One with `train` is called with
    True, and that is cut into training and validation part, and with False for the test part. Any other is called
    once and cut into all three. No item is in two parts, and the cut follows from the seed alone.

    An item is `(*inputs, target)` or a dict. `__getitems__(indices)` may return a whole batch, `collate_fn` (a static
    method of the dataset) makes a batch of items, and `prepare_data(**arguments)` (a static method) or the argument
    `download` fetches what is not there yet: one process a machine at a time, before any part is built.
    """

    def __init__(
        self,
        dataset: Callable[..., Dataset[Any]],
        dataset_arguments: dict[str, Any] | None = None,
        fold: Callable[[Dataset[Any], list[int], int], tuple[list[int], list[int]]] | None = None,
        *,
        seed: int = 0,
        batch_size: int = 64,
        num_workers: int | None = None,
        data_dir: str = "datasets",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        balanced: bool = False,
    ) -> None:
        """Builds nothing yet.

        Args:
            dataset: the class.
            dataset_arguments: for its constructor.
            fold: cuts (dataset, indices, seed) into indices to train on and to validate on, in place of val_fraction.
            seed: the cut into parts and the order of the items follow from it.
            batch_size: items a step on each device.
            num_workers: processes that load; none picks 0 for data that is fetched in whole batches, else one a core.
            data_dir: folder for data that is downloaded or lies on disk.
            val_fraction: share of the items for validation, 0 for no validation, where the dataset has no such part.
            test_fraction: share of the items for the test, where the dataset has no such part.
            balanced: draw every class equally often in training.
        """
        super().__init__(dataset, dataset_arguments or {}, fold, seed, data_dir, val_fraction, test_fraction)
        if batch_size < 1:
            raise UsageError(f"--batch_size {batch_size} should be at least 1")
        self.batch_size, self.num_workers, self.balanced = batch_size, num_workers, balanced
        self.predicts: Dataset[Any] | None = None  # what `predict` looks at; none: the test part
        self._training: OrderedLoader | None = None
        self._loaders: list[OrderedLoader] = []
        self._place: dict[str, Any] = {}

    @classmethod
    def of(cls, settings: Settings) -> "DInterface":
        """The data that a command line means, not read yet."""
        found = [make(**settings.arguments[name]) for name, make in plugins.hooks("splitter").items()]
        splitter = next((one for one in found if one is not None), None)
        return cls(settings.dataset.load(), settings.arguments["dataset"], splitter, **settings.arguments["data"])

    def train_dataloader(self) -> OrderedLoader:
        part = self.split("train")
        weights = class_balance.balance(part) if self.balanced else None
        trainer: Any = self.trainer
        overfits = trainer is not None and trainer.overfit_batches > 0  # then each epoch sees the same items
        epochs = trainer.fit_loop.epoch_progress.current if trainer is not None else None
        self._training = self._loader(
            part, shuffle=not overfits, weights=weights, epoch=lambda: epochs.processed if epochs is not None else 0
        )
        self._training.load_state_dict(self._place)
        return self._training

    def state_dict(self) -> dict[str, Any]:
        """The place in the training epoch, for the checkpoint."""
        trainer: Any = self.trainer
        return self._training.place(trainer.fit_loop.batch_idx + 1) if self._training is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning would hand it to the loader too, but not where the loader was asked for its length before that.
        self._place = state_dict
        if self._training is not None:  # some strategies restore a checkpoint after the loader was asked
            self._training.load_state_dict(state_dict)

    def val_dataloader(self) -> OrderedLoader:
        return self._loader(self.split("val"))

    def test_dataloader(self) -> OrderedLoader:
        return self._loader(self.split("test"))

    def predict_dataloader(self) -> OrderedLoader:
        return self._loader(self.predicts or self.split("test"))

    def _loader(self, part: Any, **options: Any) -> OrderedLoader:
        if part is None:
            raise UsageError(f"{self.dataset_class.__name__} has no such part: --val_fraction or --test_fraction is 0")
        trainer: Any = self.trainer
        if trainer is not None:
            options |= {"rank": data_parallel_rank(trainer).rank, "world_size": data_parallel_rank(trainer).size}
        if hasattr(unwrap_subset(part), "collate_fn"):
            options["collate_fn"] = unwrap_subset(part).collate_fn
        loader = OrderedLoader(part, self.batch_size, seed=self.seed, num_workers=self._workers(part), **options)
        self._loaders.append(loader)
        return loader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # On the CPU it is there already; to look through it for tensors costs time at every step.
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def teardown(self, stage: str) -> None:
        for loader in self._loaders:
            loader.close()
        self._loaders = []

    def _workers(self, part: Any) -> int:
        if self.num_workers is not None:
            return self.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if hasattr(unwrap_subset(part), "__getitems__") or isinstance(part, IterableDataset) or cores < 2:
            return 0  # a stream keeps its place only where it is read by this process
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or (self.trainer.num_devices if self.trainer else 1)
        return min(cores // ranks, 8)
