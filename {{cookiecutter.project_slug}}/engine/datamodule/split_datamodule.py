"""The parts of a dataset: what is learnt from, validated on and tested on, each built when it is asked for."""

import inspect
import os
from array import array
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import Dataset, IterableDataset, Subset, default_collate

from engine.datamodule import class_balance
from engine.datamodule.seeding import fetch_items, reseed, unwrap_subset
from engine.datamodule.splits import split_indices
from engine.errors import UsageError


class SplitDataModule(LightningDataModule):
    """A dataset class and the arguments of its constructor -> three parts; DInterface says how they are cut."""

    def __init__(
        self,
        dataset: Callable[..., Dataset[Any]],
        arguments: dict[str, Any],
        fold: Callable[[Dataset[Any], list[int], int], tuple[list[int], list[int]]] | None,
        seed: int,
        data_dir: str,
        val_fraction: float,
        test_fraction: float,
    ) -> None:
        super().__init__()
        self.dataset_class, self.arguments, self.fold, self.seed = dataset, dict(arguments), fold, seed
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._takes = inspect.signature(dataset).parameters
        for name, value in (("data_dir", data_dir), ("root", data_dir), ("seed", seed)):
            if name in self._takes:
                self.arguments.setdefault(name, value)
        self.data_dir = str(self.arguments.get("data_dir", data_dir))
        if dataset.__module__.startswith("torchvision.") and "transform" in self._takes:
            self.arguments.setdefault("transform", _to_tensor())  # its images are PIL's until told otherwise
        self._parts: dict[str, Dataset[Any] | None] = {}
        self._prepared = False
        self._sample: Any = None

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

    def split(self, name: str) -> Dataset[Any] | None:
        """The "train", "val" or "test" part, built when first asked for; None where `--val_fraction` is 0.

        Raises:
            UsageError: it has more classes than the train part.
            ValueError: the part is empty.
        """
        if name not in self._parts:
            self.prepare()
            self._build(name)
            learnt = _classes(self._parts.get("train"))
            for other, part in self._parts.items():
                class_balance.check(part)
                if learnt and (_classes(part) or 0) > learnt:
                    said = f"has {_classes(part)} classes, and the train part {learnt}: the others are never learnt"
                    raise UsageError(f"the {other} part of {self.dataset_class.__name__} {said}")
        part = self._parts[name]
        if part is not None and not isinstance(part, IterableDataset) and len(part) == 0:  # type: ignore[arg-type]
            how = f"--val_fraction {self.val_fraction} --test_fraction {self.test_fraction}"
            raise ValueError(f"the {name} part of {self.dataset_class.__name__} is empty ({how})")
        return part

    def sample(self) -> Any:
        """A batch of two items to learn from, one by one; None where that would move a stream on."""
        part: Any = self.split("train")
        if self._sample is None and not isinstance(part, IterableDataset):
            collate = getattr(unwrap_subset(part), "collate_fn", default_collate)
            reseed("batch", self.seed, 0, 0, 0)  # as for the first batch
            self._sample = collate(fetch_items(part, [0, 1][: len(part)]))
        return self._sample

    def target_info(self) -> dict[str, Any]:
        """What the metrics ask for, as far as it is known.

        "num_classes"; "target", the shape of one; and "whole_numbers", whether a target is made of them.
        """
        facts = {"num_classes": self.attribute("num_classes")}
        if (sample := self.sample()) is None or not isinstance(target := class_balance.target(sample), torch.Tensor):
            return facts
        return facts | {"target": tuple(target.shape[1:]), "whole_numbers": not target.is_floating_point()}

    def class_counts(self) -> torch.Tensor:
        """How many items (of masks: how many pixels) of each class there are to learn from (num_classes,)."""
        return class_balance.counts(self.split("train"), self.attribute("num_classes") or 0)

    def attribute(self, name: str) -> Any:
        """An attribute of the dataset, None where it has none. `num_classes` may also be the length of `classes`."""
        built = [part for part in self._parts.values() if part is not None]
        part = unwrap_subset(built[0] if built else self.split("train"))
        return _classes(part) if name == "num_classes" else getattr(part, name, None)

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
        found = split_indices(len(dataset), self.seed, 0.0 if self.fold else self.val_fraction, test_fraction or 0.0)  # type: ignore[arg-type]
        for name, indices in found.items():
            if name != "test" or test_fraction is not None:
                self._parts[name] = Subset(dataset, _numbers(indices)) if len(indices) or name == "train" else None
        if self.fold:
            parts = zip(("train", "val"), self.fold(dataset, found["train"].tolist(), self.seed), strict=True)
            self._parts |= {name: Subset(dataset, indices) for name, indices in parts}


def _classes(part: Any) -> Any:
    part = unwrap_subset(part)
    return getattr(part, "num_classes", len(part.classes) if hasattr(part, "classes") else None)


def _numbers(indices: torch.Tensor) -> "array[int]":
    """SeededBatch, (items,), that read as Python numbers, in a fifth of the memory that a list of them takes."""
    return array("q", indices.numpy().tobytes())


def _to_tensor() -> Any:
    from torchvision.transforms import v2

    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
