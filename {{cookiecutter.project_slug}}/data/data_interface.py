"""DInterface: any Dataset class -> train, val and test split -> loaders."""

import os
from collections.abc import Callable
from types import MethodType
from typing import Annotated, Any, cast

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import Dataset, IterableDataset

from engine.checkpointing import data_record
from engine.cli import features_and_commands
from engine.cli.settings import Settings
from engine.datamodule import class_balance
from engine.datamodule.batched_fetch import BatchedFetch, prove
from engine.datamodule.combined_loader import CombinedResumableLoader
from engine.datamodule.resumable_loader import ResumableLoader
from engine.datamodule.seeding import unwrap_subset
from engine.datamodule.split_datamodule import SplitDataModule, Splitter
from engine.errors import UsageError
from engine.launch.data_parallel_rank import data_parallel_rank
from engine.training.metric_logging import prepare_evaluation


class DInterface(SplitDataModule):
    """Builds the splits of a dataset and loads them.

    A constructor with `split` is called once a split, with "train", "val" and "test". One with `train` is called with
    True, and that is split into train and val, and with False for test. Any other is called once and split into all
    three. No item is in two splits, and the split follows from the seed alone.

    Its methods `val_sets()` and `test_sets()` may return further datasets by name: {"hard": a dataset}, of which
    `val_hard_acc` and the like are logged.

    An item is `(*inputs, target)` or a dict, see ItemFields. `__getitems__(indices)` may return a whole batch,
    `collate_fn` (a static method of the dataset) makes a batch of items, and `prepare_data(**arguments)` (a static
    method) or the argument `download` downloads what is missing: one process a machine at a time, before any split is
    built.
    """

    def __init__(
        self,
        dataset_class: Callable[..., Dataset[Any]],
        dataset_arguments: dict[str, Any] | None = None,
        splitter: Splitter | None = None,
        *,
        seed: Annotated[int, ">= 0"] = 0,
        batch_size: Annotated[int, ">= 1"] = 64,
        num_workers: Annotated[int, ">= 0"] | None = None,
        data_dir: str = "datasets",
        val_fraction: Annotated[float, ">= 0", "< 1"] = 0.1,
        test_fraction: Annotated[float, ">= 0", "< 1"] = 0.1,
        stratify: bool = True,
        balanced: bool = False,
    ) -> None:
        """Builds nothing yet.

        dataset_class: the class.
        dataset_arguments: for its constructor.
        splitter: (dataset, indices, seed) -> indices of train and of val, in place of val_fraction.
        seed: the splits and the order of the items follow from it.
        batch_size: items per step on each device.
        num_workers: processes that load data; none is 0 for streams and whole batches, else one a core, 8 at most.
        data_dir: folder that holds the data, or into which it is downloaded.
        val_fraction: share of the items for validation, 0 for no validation, where the dataset has no such split.
        test_fraction: share of the items for the test, where the dataset has no such split.
        stratify: same share of every class in each split, where `targets` are classes and there are no `groups`.
        balanced: draw every class equally often in training.
        """
        fractions: Any = {"val_fraction": val_fraction, "test_fraction": test_fraction, "stratify": stratify}
        super().__init__(dataset_class, dataset_arguments or {}, splitter, seed=seed, data_dir=data_dir, **fractions)
        self.batch_size, self.num_workers, self.balanced = batch_size, num_workers, balanced
        self.predict_dataset: Dataset[Any] | None = None  # None: the test split
        self._train_loader: ResumableLoader | CombinedResumableLoader | None = None
        self._loaders: list[ResumableLoader] = []
        self._resume_from: dict[str, Any] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> "DInterface":
        """The data of a command line, not read yet."""
        splitters = [make(**settings.arguments[name]) for name, make in features_and_commands.hooks("splitter").items()]
        splitter = next((one for one in splitters if one is not None), None)
        data = cls(settings.dataset.load(), settings.arguments["dataset"], splitter, **settings.arguments["data"])
        if data.balanced and settings.arguments["system"].get("class_weights") and not settings.ckpt_path:
            raise UsageError("--balanced and --class_weights balanced both make up for rare classes: give one of them")
        data.use_record(data_record.read(settings.ckpt_path), settings.action)
        if any(settings.arguments.get("action", {}).get(name) for name in ("rows", "images", "files")):  # of predict
            data.restore()
        return data

    def setup(self, stage: str) -> None:
        module = cast(Any, self.trainer).lightning_module
        prepare_evaluation(module, self.set_names)
        if is_overridden("transfer_batch_to_device", module):  # Lightning would take this one's instead
            self.transfer_batch_to_device = MethodType(LightningDataModule.transfer_batch_to_device, self)  # type: ignore[method-assign]

    def train_dataloader(self) -> ResumableLoader:
        dataset, trainer = self.split("train"), cast(Any, self.trainer)
        self._train_loader = self._loader(
            dataset,
            shuffle=trainer is None or not trainer.overfit_batches,  # --overfit_batches: the same items each epoch
            weights=class_balance.balanced_weights(dataset, self.get_target) if self.balanced else None,
            current_epoch=lambda: trainer.fit_loop.epoch_progress.current.processed if trainer is not None else 0,
            accumulate=trainer.accumulate_grad_batches if trainer is not None else 1,
        )
        self._train_loader.load_state_dict(self._resume_from)
        return self._train_loader

    def val_dataloader(self) -> Any:
        return self._evaluation_loaders("val")

    def test_dataloader(self) -> Any:
        return self._evaluation_loaders("test")

    def predict_dataloader(self) -> ResumableLoader:
        return self._loader(self.predict_dataset or self.split("test"))

    def _evaluation_loaders(self, stage: str) -> Any:
        """A loader for each of the stage's sets; without a list where there is only one."""
        loaders = [self._loader(self.split(name), pad=False) for name in self.set_names(stage) or [stage]]
        return loaders if len(loaders) > 1 else loaders[0]

    def _loader(self, dataset: Any, **options: Any) -> ResumableLoader:
        if dataset is None:
            raise UsageError(f"{self.dataset_class.__name__} has no such split: --val_fraction or --test_fraction is 0")
        if hasattr(unwrap_subset(dataset), "collate_fn"):
            options["collate_fn"] = unwrap_subset(dataset).collate_fn
        whole = self.batched_fetch(dataset)
        workers = self._default_workers(dataset, bool(whole)) if self.num_workers is None else self.num_workers
        options |= {"seed": self.seed, "num_workers": workers, "whole": whole}
        loader = ResumableLoader(dataset, self.batch_size, **self._rank(), **options)
        self._loaders.append(loader)
        return loader

    def _rank(self) -> dict[str, Any]:
        here = data_parallel_rank(self.trainer) if self.trainer is not None else None
        return {"rank": here.rank, "world_size": here.size} if here else {}

    def batched_fetch(self, dataset: Any) -> BatchedFetch | None:
        """How to fetch whole batches of a dataset without `__getitems__` or `collate_fn`; None if it cannot."""
        has_own = any(hasattr(unwrap_subset(dataset), name) for name in ("__getitems__", "collate_fn"))
        return None if has_own else prove(dataset)

    def _default_workers(self, dataset: Any, whole: bool) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        whole = whole or hasattr(unwrap_subset(dataset), "__getitems__")
        if whole or isinstance(dataset, IterableDataset) or cores < 2:
            return 0  # a stream keeps its state only where this process reads it
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or (self.trainer.num_devices if self.trainer else 1)
        return min(cores // ranks, 8)

    @property
    def reads_quickly(self) -> bool:
        """Whether workers, the default, seem to take longer to hand a batch over than this process to read it."""
        quick = self.num_workers is None and self.item_seconds * self.batch_size < 2e-3  # about what handing over takes
        return quick and self._default_workers(self._any_split(), False) > 0

    def state_dict(self) -> dict[str, Any]:
        """The position in the training epoch, for the checkpoint."""
        if self._train_loader is None or self.trainer is None:
            return {}
        return self._train_loader.state_after(self.trainer.fit_loop.batch_idx + 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning would hand it to the loader too, but not where the loader was asked for its length before that.
        self._resume_from = state_dict
        if self._train_loader is not None:  # some strategies restore a checkpoint after that
            self._train_loader.load_state_dict(state_dict)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # On the CPU it is there already; to look through it for tensors costs time at every step.
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def teardown(self, stage: str) -> None:
        for loader in self._loaders:
            loader.close()
        self._loaders = []
