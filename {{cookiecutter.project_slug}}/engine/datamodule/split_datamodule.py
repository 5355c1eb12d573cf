"""SplitDataModule: the train, val and test split of a dataset class, each built when it is first asked for."""

import inspect
import json
import math
import os
import re
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import Dataset, IterableDataset, Subset, default_collate

from engine.cli import signatures_from_import
from engine.datamodule import class_balance
from engine.datamodule.class_balance import num_classes
from engine.datamodule.item_fields import ItemFields
from engine.datamodule.seeding import Collate, fetch_items, reseed, unwrap_subset
from engine.datamodule.splits import fingerprint, item_groups, split_indices
from engine.errors import UsageError, printable

Splitter = Callable[[Dataset[Any], list[int], int], tuple[list[int], list[int]]]


class SplitDataModule(LightningDataModule):
    """Builds a dataset class with its arguments, a split at a time. Arguments: see DInterface."""

    def __init__(
        self,
        dataset_class: Callable[..., Dataset[Any]],
        dataset_arguments: dict[str, Any],
        splitter: Splitter | None,
        *,
        seed: int,
        data_dir: str,
        val_fraction: float,
        test_fraction: float,
        stratify: bool,
    ) -> None:
        super().__init__()
        self.dataset_class, self.splitter, self.seed = dataset_class, splitter, seed
        self.val_fraction, self.test_fraction, self.stratify = val_fraction, test_fraction, stratify
        self._parameters = inspect.signature(dataset_class).parameters
        # The argument that asks for a split, and its values; "" where the class has none.
        signature = signatures_from_import.from_object(dataset_class)
        self._split_argument, self._split_values = signature.split_values or ("", {})
        defaults: dict[str, Any] = {"data_dir": data_dir, "seed": seed, "stratify": stratify}
        root = getattr(self._parameters.get("root"), "default", None)
        defaults["root"] = data_dir if root in (None, inspect.Parameter.empty) else root
        constructor = dataset_class.__init__ if isinstance(dataset_class, type) else dataset_class  # type: ignore[misc]
        if getattr(constructor, "__module__", "").startswith("torchvision."):
            from torchvision.transforms import v2

            to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
            defaults["transform"] = v2.Compose(to_tensor)  # its images are PIL's otherwise
        self.arguments = {key: value for key, value in defaults.items() if key in self._parameters} | dataset_arguments
        self.data_dir = str(self.arguments.get("data_dir", self.arguments.get("root", data_dir)))
        self.kept: dict[str, Any] = {}  # the `record` of the data that a checkpoint was trained on
        self.optional: set[str] = set()  # the splits that an action can do without
        self.missing: set[str] = set()  # those of them that cannot be built
        self.restored = False  # whether there is a record in place of the data
        self.item_fields = ItemFields()  # MInterface says what its network takes
        self._splits: dict[str, Dataset[Any] | None] = {}
        self._prepared = False
        self._sample: Any = None
        self.item_seconds = math.inf  # that each item of `sample` took, which may differ from run to run

    def split(self, name: str) -> Dataset[Any] | None:
        """The "train", "val" or "test" split, or another one of `set_names`.

        None where its fraction is 0, or where it is optional and cannot be built.

        Raises:
            UsageError: it is empty, or has more classes than the train split.
            ValueError: a target is out of range.
        """
        if name in self.missing:
            return None
        try:
            return self._checked_split(name)
        except Exception as error:
            if name not in self.optional:
                raise
            self.missing.add(name)
            self._splits.pop(name, None)
            why = f"{type(error).__name__}: {printable(str(error))}"
            rank_zero_only(print)(f"goes on without the {name} split, which cannot be built: {why}", file=sys.stderr)
            return None

    def use_record(self, kept: dict[str, Any], action: str) -> None:
        """Takes the `record` of a checkpoint's run, with which only training needs more splits than it is for."""
        self.kept = kept
        loads_itself = LightningDataModule in getattr(self.dataset_class, "__mro__", ())
        apart = self._split_argument or "train" in self._parameters or loads_itself
        if apart and "target_info" in kept and action in ("validate", "test", "predict", "export"):
            self.optional = {"train", "test"} if action == "validate" else {"train", "val"}

    def _checked_split(self, name: str) -> Dataset[Any] | None:
        if name not in self._splits:
            self._prepare()
            built = {*self._splits}
            self._build(name)
            trained = num_classes(self._splits.get("train"))
            for other, dataset in self._splits.items():
                class_balance.check_targets(dataset)
                if other not in built:
                    self._report_absent_classes(other)
                if isinstance(trained, int) and (number := num_classes(dataset) or 0) > trained:
                    counts = f"has {number} classes, and the train split {trained}: the others are never learnt"
                    raise UsageError(f"the {other} split of {self.dataset_class.__name__} {counts}")
        dataset = self._splits[name]
        if not (dataset is None or self.restored or isinstance(dataset, IterableDataset)) and len(dataset) == 0:  # type: ignore[arg-type]
            what = f"the {name} split of {self.dataset_class.__name__} has no item"
            unwanted = f": give more items, or --{name}_fraction 0" if name in ("val", "test") else ""
            raise UsageError(what + unwanted)
        return dataset

    def set_names(self, stage: str) -> list[str]:
        """The sets that a validation ("val") or a test measures: the split of that name, if there is one, and others.

        The others, such as "val_hard", are those that the dataset's `val_sets` or `test_sets` returns.
        """
        own = [stage] if self.split(stage) is not None else []
        return own + [name for name in self._further_sets if name.startswith(f"{stage}_")]

    @cached_property
    def _further_sets(self) -> dict[str, Dataset[Any]]:
        train: Any = None if self.restored else unwrap_subset(self._any_split())
        found = {}
        for method in ("val_sets", "test_sets"):
            for name, dataset in getattr(train, method, dict)().items():
                if not re.fullmatch(r"\w+", name):
                    raise UsageError(f"{method}: {name!r} becomes part of a metric's name: take letters, digits and _")
                found[f"{method.removesuffix('sets')}{name}"] = dataset
        return found

    def sample(self) -> Any:
        """A batch of two training items on the CPU; None of a stream, which reading would move on, and of a record.

        It is of one where the two differ in size. Where there is no train split, it is of another one.
        """
        dataset: Any = self._any_split()
        if self._sample is None and not self.restored and not isinstance(dataset, IterableDataset):
            begun = time.perf_counter()
            items = self._fetch([0, 1][: len(dataset)], dataset)
            try:
                self._sample = self._collate(items, dataset)
            except UsageError:  # of different sizes, for batches of one
                self._sample = self._collate(items[:1], dataset)
            self.item_seconds = (time.perf_counter() - begun) / len(items)
        return self._sample

    def batches_of_one(self, count: int) -> list[Any]:
        """The first items of training and validation, each as a batch: what differs in size shows.

        None where `sample` gives None.
        """
        self.optional |= {"val"}
        splits = [] if self.sample() is None else [self._any_split(), self.split("val")]
        known = [one for one in splits if one is not None and not isinstance(one, IterableDataset)]
        return [self._collate(self._fetch([at], one), one) for one in known for at in range(min(count, len(one)))]  # type: ignore[arg-type]

    def _fetch(self, indices: list[int], dataset: Any) -> list[Any]:
        reseed("batch", self.seed, 0, 0, 0)  # as for the first batch
        return fetch_items(dataset, indices)

    def _collate(self, items: list[Any], dataset: Any) -> Any:
        return Collate(self.collate_of(dataset) or default_collate)(items)

    def collate_of(self, dataset: Any = None) -> Callable[[list[Any]], Any] | None:
        """What makes a batch of the items of a split, or of any; None where torch's default_collate does."""
        return getattr(unwrap_subset(self._any_split() if dataset is None else dataset), "collate_fn", None)

    def target_info(self) -> dict[str, Any]:
        """What losses and metrics need to know of the target: "num_classes", "shape" of one, "is_integer".

        Of a dict of targets, "heads" holds these of each; the dataset's num_classes may be a dict too.
        Without a sample, or with a target that is no tensor, only num_classes is there.
        """
        if self.restored:
            return self.kept["target_info"] | {"shape": tuple(self.kept["target_info"]["shape"])}
        info = {"num_classes": self.attribute("num_classes")}
        sample = self.sample()
        target = None if sample is None else self.get_target(sample)
        if isinstance(target, dict):
            info["heads"] = {name: _tensor_info(one, info["num_classes"], name) for name, one in target.items()}
        elif isinstance(target, torch.Tensor):
            info |= {"shape": tuple(target.shape[1:]), "is_integer": not target.is_floating_point()}
        return info

    def class_counts(self) -> torch.Tensor:
        """The number of training items (of masks: of pixels) in each class, (num_classes,)."""
        if (train := self.split("train")) is None:
            raise UsageError("--class_weights balanced counts the items of the train split, which cannot be built")
        return class_balance.class_counts(train, self.attribute("num_classes") or 0, self.get_target)

    def get_target(self, item: Any) -> Any:
        """The target of an item or a batch, None where it has none."""
        return self.item_fields.split(item).target

    def attribute(self, name: str) -> Any:
        """An attribute of the dataset, None where it has none. `num_classes` may also be the length of `classes`."""
        if name == "num_classes" and self.missing:
            return self.kept["target_info"]["num_classes"]
        dataset = next((one for one in self._splits.values() if one is not None), None)
        dataset = dataset if dataset is not None else self._any_split()
        return num_classes(dataset) if name == "num_classes" else getattr(unwrap_subset(dataset), name, None)

    def in_unit(self, values: Any) -> Any:
        """Numbers in the unit of the data, as the dataset's `inverse_transform` makes them; as they are without one."""
        invert = self.attribute("inverse_transform")
        return values if invert is None else invert(values)

    def _any_split(self) -> Dataset[Any]:
        """The train split, or where there is none, the first other one."""
        return next(one for name in ("train", "test", "val") if (one := self.split(name)) is not None)

    def image_opener(self) -> Callable[[str], torch.Tensor] | None:
        """How the dataset makes an input of an image file: its own `open_image`, or `loader` and `transform`."""
        load, transform = self.attribute("loader"), self.attribute("transform")
        both = (lambda path: transform(load(path))) if load and transform else None
        return self.attribute("open_image") or both

    def restore(self) -> bool:
        """Takes the dataset as the checkpoint's run kept it, in place of its files; returns whether that can be done.

        It needs a class method `from_record(record, **arguments)`, which makes what `predict` needs to read files.
        """
        from_record = getattr(self.dataset_class, "from_record", None)
        known = self.kept.get("dataset") == self.dataset_class.__name__ and "shape" in self.kept.get("target_info", {})
        if from_record is None or not known:
            return False
        self._splits = {"train": from_record(self.kept, **self.arguments), "val": None, "test": None}
        self.restored = True
        return True

    @cached_property
    def record(self) -> dict[str, Any]:
        """What tells whether the data has changed since a run began, as JSON holds it.

        "dataset" (the class), "classes", "preprocessing", "target_info", and "splits": how they were made, and of each
        one its fingerprint (None of a stream, or where its fraction is 0), unless it is missing.
        """
        splits: dict[str, Any] = {"stratify": self.stratify}
        names = dict.fromkeys(["train", "val", "test", *self.set_names("val"), *self.set_names("test")])
        built = {name: self.split(name) for name in names}
        splits |= {name: fingerprint(one, self.data_dir) for name, one in built.items() if name not in self.missing}
        target_info = plain_value(self.target_info())
        facts = {"dataset": self.dataset_class.__name__, "target_info": target_info, "splits": splits}
        return facts | {name: plain_value(self.attribute(name)) for name in ("classes", "preprocessing")}

    def _report_absent_classes(self, name: str) -> None:
        dataset: Any = self._splits[name]
        if dataset is None or not hasattr(dataset, "__len__") or isinstance(dataset, IterableDataset):
            return
        if absent := class_balance.absent_classes(dataset):
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            line = f"the {name} split has no item of class {', '.join(absent[:5])}{more}"
            rank_zero_only(print)(line, file=sys.stderr)
        names = getattr(unwrap_subset(dataset), "classes", None) if name == "train" else None
        names = map(str, names) if isinstance(names, (list, tuple)) else ()
        if alike := class_balance.look_alike(names, fold=True):
            line = f"the classes {alike} differ only in case, width or blanks: they are taken for two"
            rank_zero_only(print)(line, file=sys.stderr)

    def _prepare(self) -> None:
        """Downloads what the dataset needs, in one process a machine at a time; the next one finds it there."""
        prepare_data = getattr(self.dataset_class, "prepare_data", None)
        if self._prepared or not (prepare_data or "download" in self._parameters):
            return
        with self.prepare_lock():
            if prepare_data:
                accepted = inspect.signature(prepare_data).parameters
                prepare_data(**{name: value for name, value in self.arguments.items() if name in accepted})
            else:
                splits: list[dict[str, Any]] = [{self._split_argument: one} for one in self._split_values.values()]
                splits = splits or ([{"train": True}, {"train": False}] if "train" in self._parameters else [{}])
                for split in splits:
                    self.dataset_class(**self.arguments, **split, download=True)
        self._prepared = True

    def prepare_lock(self) -> AbstractContextManager[Any]:
        """A lock that one process a machine holds at a time; of a folder where nobody can write, none."""
        from filelock import FileLock  # comes with torch

        Path(self.data_dir).mkdir(parents=True, exist_ok=True)
        writable = os.access(self.data_dir, os.W_OK)
        return FileLock(Path(self.data_dir) / ".prepare.lock") if writable else nullcontext()

    def _build(self, name: str) -> None:
        """Builds a split, and those that are cut from the same dataset."""
        if name not in ("train", "val", "test"):
            self._splits[name] = self._further_sets[name]
        elif self._split_argument:
            if self.splitter and "val" in self._split_values:
                raise UsageError(f"--num_folds: {self.dataset_class.__name__} comes with a validation split of its own")
            if name == "test" and name not in self._split_values:
                self._splits[name] = None
                return
            value = self._split_values.get(name, self._split_values["train"])
            dataset: Any = self.dataset_class(**self.arguments, **{self._split_argument: value})
            if name != "test" and "val" not in self._split_values:
                self._random_split(dataset, None)
                return
            unwanted = self.arguments.get(f"{name}_fraction") == 0 and len(dataset) == 0
            self._splits[name] = None if unwanted else dataset
        elif "train" not in self._parameters:
            self._random_split(self.dataset_class(**self.arguments), self.test_fraction)
        elif name == "test":
            self._splits[name] = self.dataset_class(**self.arguments, train=False)
        else:
            self._random_split(self.dataset_class(**self.arguments, train=True), None)

    def _random_split(self, dataset: Dataset[Any], test_fraction: float | None) -> None:
        """Splits one dataset into train, val and, unless `test_fraction` is None, test."""
        if isinstance(dataset, IterableDataset):
            raise TypeError(f"{self.dataset_class.__name__} cannot be split: give its constructor an argument `split`")
        val_fraction = 0.0 if self.splitter else self.val_fraction
        classes = class_balance.known_classes(dataset) if self.stratify else None
        if (groups := item_groups(dataset)) is not None:
            also = ", not stratified by class" if classes is not None and not self.splitter else ""
            rank_zero_only(print)(f"{len({*groups}):,} groups of items, each in one split as a whole{also}")
        given = len(dataset), self.seed, val_fraction, test_fraction or 0.0, classes, groups  # type: ignore[arg-type]
        splits = split_indices(*given)
        for name, indices in splits.items():
            if name != "test" or test_fraction is not None:
                compact = array("q", indices.numpy().tobytes())  # a fifth of the memory of a list
                self._splits[name] = Subset(dataset, compact) if len(indices) or name == "train" else None
        if self.splitter:
            train, val = self.splitter(dataset, splits["train"].tolist(), self.seed)
            self._splits |= {"train": Subset(dataset, train), "val": Subset(dataset, val)}


def plain_value(value: Any) -> Any:
    """A value as JSON holds it, None where it cannot."""
    try:
        return json.loads(json.dumps(value.tolist() if hasattr(value, "tolist") else value))
    except TypeError:
        return None


def _tensor_info(target: Any, num_classes: Any, name: str) -> dict[str, Any]:
    number = num_classes.get(name) if isinstance(num_classes, dict) else None
    is_integer = isinstance(target, torch.Tensor) and not target.is_floating_point()
    return {"num_classes": number, "shape": tuple(getattr(target, "shape", ()))[1:], "is_integer": is_integer}
