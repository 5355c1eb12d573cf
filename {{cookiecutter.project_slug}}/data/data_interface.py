"""DInterface: any Dataset class -> training, validation and test part -> loaders."""

import inspect
import os
from array import array
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import Dataset, IterableDataset, Subset, default_collate

from engine import targets
from engine.batches import base
from engine.cut import cut
from engine.discovery import UsageError
from engine.loader import OrderedLoader, seat
from engine.settings import Settings


class DInterface(LightningDataModule):
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
        super().__init__()
        if batch_size < 1:
            raise UsageError(f"--batch_size {batch_size} should be at least 1")
        self.dataset_class, self.arguments = dataset, dict(dataset_arguments or {})
        self.seed, self.batch_size, self.fold = seed, batch_size, fold
        self.val_fraction, self.test_fraction, self.balanced = val_fraction, test_fraction, balanced
        self._takes = inspect.signature(dataset).parameters
        for name, value in (("data_dir", data_dir), ("root", data_dir), ("seed", seed)):
            if name in self._takes:
                self.arguments.setdefault(name, value)
        self.data_dir = str(self.arguments.get("data_dir", data_dir))
        if dataset.__module__.startswith("torchvision.") and "transform" in self._takes:
            self.arguments.setdefault("transform", _to_tensor())  # its images are PIL's until told otherwise
        self.num_workers = num_workers
        self.predicts: Dataset[Any] | None = None  # what `predict` looks at; none: the test part
        self._parts: dict[str, Dataset[Any] | None] = {}
        self._prepared = False
        self._sample: Any = None
        self._training: OrderedLoader | None = None
        self._loaders: list[OrderedLoader] = []
        self._place: dict[str, Any] = {}

    @classmethod
    def of(cls, settings: Settings) -> "DInterface":
        """The data that a command line means, not read yet."""
        folds = settings.arguments.get("folds")
        fold = import_module("engine.folds").cutter(**folds) if folds else None
        return cls(settings.dataset.load(), settings.arguments["dataset"], fold, **settings.arguments["data"])

    def prepare(self) -> None:
        """Fetches what the dataset needs, in one process a machine at a time; the next finds it there."""
        own = getattr(self.dataset_class, "prepare_data", None)
        if self._prepared or not (own or "download" in self._takes):
            return
        from filelock import FileLock  # comes with torch

        Path(self.data_dir).mkdir(parents=True, exist_ok=True)
        writes = os.access(self.data_dir, os.W_OK)  # where nobody can write there is nothing to keep apart
        with FileLock(Path(self.data_dir) / ".prepare.lock") if writes else nullcontext():
            if own:
                asked = inspect.signature(own).parameters
                own(**{name: value for name, value in self.arguments.items() if name in asked})
            else:
                parts: list[dict[str, Any]] = [{"train": True}, {"train": False}] if "train" in self._takes else [{}]
                if "split" in self._takes:
                    parts = [{"split": name} for name in ("train", "val", "test")]
                for part in parts:
                    self.dataset_class(**self.arguments, **part, download=True)
        self._prepared = True

    def part(self, name: str) -> Dataset[Any] | None:
        """The "train", "val" or "test" part, built when first asked for; None where `--val_fraction` is 0.

        Raises:
            ValueError: the part is empty.
        """
        if name not in self._parts:
            self.prepare()
            self._build(name)
            for part in self._parts.values():
                targets.check(part)
        part = self._parts[name]
        if part is not None and not isinstance(part, IterableDataset) and len(part) == 0:  # type: ignore[arg-type]
            how = f"--val_fraction {self.val_fraction} --test_fraction {self.test_fraction}"
            raise ValueError(f"the {name} part of {self.dataset_class.__name__} is empty ({how})")
        return part

    def sample(self) -> Any:
        """A batch of two items to learn from, fetched in this process; None where that would move a stream on."""
        part: Any = self.part("train")
        if self._sample is None and not isinstance(part, IterableDataset):
            collate = getattr(base(part), "collate_fn", default_collate)
            self._sample = next(iter(OrderedLoader(part, 2, seed=self.seed, collate_fn=collate)))
        return self._sample

    def facts(self) -> dict[str, Any]:
        """What the metrics ask for, as far as it is known.

        "num_classes"; "target", the shape of one; and "whole_numbers", whether a target is made of them.
        """
        facts = {"num_classes": self.knows("num_classes")}
        if (sample := self.sample()) is None or not isinstance(target := targets.target(sample), torch.Tensor):
            return facts
        return facts | {"target": tuple(target.shape[1:]), "whole_numbers": not target.is_floating_point()}

    def class_counts(self) -> torch.Tensor:
        """How many items (of masks: how many pixels) of each class there are to learn from (num_classes,)."""
        return targets.counts(self.part("train"), self.knows("num_classes") or 0)

    def knows(self, name: str) -> Any:
        """An attribute of the dataset, None where it has none. `num_classes` may also be the length of `classes`."""
        built = [part for part in self._parts.values() if part is not None]
        part = base(built[0] if built else self.part("train"))
        if name == "num_classes" and not hasattr(part, name) and hasattr(part, "classes"):
            return len(part.classes)
        return getattr(part, name, None)

    def _build(self, name: str) -> None:
        if "split" in self._takes and self.fold:
            raise UsageError(f"--num_folds: {self.dataset_class.__name__} comes with a validation part of its own")
        if "split" in self._takes:
            part: Any = self.dataset_class(**self.arguments, split=name)
            unwanted = self.arguments.get(f"{name}_fraction") == 0 and len(part) == 0
            self._parts[name] = None if unwanted else part
        elif "train" not in self._takes:
            self._cut(self.dataset_class(**self.arguments), self.test_fraction)
        elif name == "test":
            self._parts[name] = self.dataset_class(**self.arguments, train=False)
        else:
            self._cut(self.dataset_class(**self.arguments, train=True), None)

    def _cut(self, dataset: Dataset[Any], test_fraction: float | None) -> None:
        """Cuts what comes in one piece. test_fraction: None where the test part is another one."""
        if isinstance(dataset, IterableDataset):
            raise TypeError(f"{self.dataset_class.__name__} cannot be cut: give its constructor an argument `split`")
        found = cut(len(dataset), self.seed, 0.0 if self.fold else self.val_fraction, test_fraction or 0.0)  # type: ignore[arg-type]
        for name, indices in found.items():
            if name != "test" or test_fraction is not None:
                self._parts[name] = Subset(dataset, _numbers(indices)) if len(indices) or name == "train" else None
        if self.fold:
            parts = zip(("train", "val"), self.fold(dataset, found["train"].tolist(), self.seed), strict=True)
            self._parts |= {name: Subset(dataset, indices) for name, indices in parts}

    def train_dataloader(self) -> OrderedLoader:
        part = self.part("train")
        weights = targets.balance(part) if self.balanced else None
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
        return self._loader(self.part("val"))

    def test_dataloader(self) -> OrderedLoader:
        return self._loader(self.part("test"))

    def predict_dataloader(self) -> OrderedLoader:
        return self._loader(self.predicts or self.part("test"))

    def _loader(self, part: Any, **options: Any) -> OrderedLoader:
        if part is None:
            raise UsageError(f"{self.dataset_class.__name__} has no such part: --val_fraction or --test_fraction is 0")
        trainer: Any = self.trainer
        if trainer is not None:
            options |= {"rank": seat(trainer).rank, "world_size": seat(trainer).size}
        if hasattr(base(part), "collate_fn"):
            options["collate_fn"] = base(part).collate_fn
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
        if hasattr(base(part), "__getitems__") or isinstance(part, IterableDataset) or cores < 2:
            return 0  # a stream keeps its place only where it is read by this process
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or (self.trainer.num_devices if self.trainer else 1)
        return min(cores // ranks, 8)


def _numbers(indices: torch.Tensor) -> "array[int]":
    """Indices, (items,), that read as Python numbers, in a fifth of the memory that a list of them takes."""
    return array("q", indices.numpy().tobytes())


def _to_tensor() -> Any:
    from torchvision.transforms import v2

    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
