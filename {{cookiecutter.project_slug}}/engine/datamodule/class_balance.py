"""Class targets of a dataset: their range, the number of items a class, and sampling weights that balance it."""

import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import torch

from engine.datamodule.seeding import subset_indices, targets_of, unwrap_subset
from engine.errors import UsageError

GetTarget = Callable[[Any], Any]  # of an item


def check_targets(dataset: Any) -> None:
    """Raises ValueError: the dataset's `targets` hold a class outside 0 .. num_classes - 1."""
    dataset = unwrap_subset(dataset)
    num_classes, targets = getattr(dataset, "num_classes", None), targets_of(dataset)
    if not isinstance(num_classes, int) or targets is None or not len(targets):
        return
    try:
        targets = torch.as_tensor(targets)
    except (TypeError, ValueError):
        return  # not numbers: paths, for example
    wrong = ((targets < 0) & (targets != -100)) | (targets >= num_classes)  # -100: ignore_index of cross_entropy
    if targets.dim() == 1 and not targets.is_floating_point() and wrong.any():
        index = int(wrong.nonzero()[0])
        name = type(dataset).__name__
        raise ValueError(f"item {index} of {name} is of class {targets[index]}, not 0 to {num_classes - 1}")


def known_classes(dataset: Any) -> torch.Tensor | None:
    """The class of each item (items,), from the whole numbers in the dataset's `targets`; None where it has none.

    Without `num_classes` or `classes`, whole numbers are classes where each occurs five times, on average.
    """
    dataset, indices = subset_indices(dataset)
    try:
        targets = torch.as_tensor(targets_of(dataset))
    except (TypeError, ValueError, RuntimeError):
        return None  # none, or not numbers
    if targets.dim() != 1 or targets.is_floating_point() or not len(targets):
        return None
    number = num_classes(dataset)
    if number == 1 or (number is None and 5 * len(targets.unique()) > len(targets)):
        return None
    return targets[indices].long()


def num_classes(dataset: Any) -> Any:
    """The dataset's `num_classes`, or the length of its `classes`; None where it has neither.

    Both may be dicts, of several targets by name.
    """
    dataset = unwrap_subset(dataset)
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, dict) and all(isinstance(one, (list, tuple)) for one in classes.values()):
        known: Any = {name: len(one) for name, one in classes.items()}
    else:
        known = None if classes is None else len(classes)
    return getattr(dataset, "num_classes", known)


def absent_classes(dataset: Any) -> list[str]:
    """The names, or else the numbers, of the classes that no item of a split is of."""
    classes, number = known_classes(dataset), num_classes(dataset)
    if classes is None or not isinstance(number, int):
        return []
    names = getattr(unwrap_subset(dataset), "classes", None) or range(number)
    counts = classes[classes >= 0].bincount(minlength=number)
    return [str(name) for name, count in zip(names, counts.tolist(), strict=False) if not count]


def look_alike(names: Iterable[str], fold: bool = False) -> str:
    """Two of the names that differ only in blanks, or in how Unicode composes a letter; "" where there are none.

    fold: or in upper and lower case, or in the width of letters.
    """
    found = dict[str, str]()
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold() if fold else unicodedata.normalize("NFC", name)
        if (first := found.setdefault(" ".join(plain.split()), name)) != name:
            return f"{first!r} and {name!r}"
    return ""


def balanced_weights(dataset: Any, get_target: GetTarget) -> torch.Tensor:
    """A sampling weight for each item (items,): one over the size of its class."""
    classes = item_classes(dataset, get_target)
    if classes.dim() != 1 or classes.is_floating_point():
        name = type(unwrap_subset(dataset)).__name__
        raise UsageError(f"--balanced needs a class for each item, which {name} does not have")
    return 1.0 / torch.bincount(classes)[classes].double()


def class_counts(dataset: Any, num_classes: int, get_target: GetTarget) -> torch.Tensor:
    """The number of items (of masks: of pixels) in each class, (num_classes,)."""
    if num_classes and targets_of(unwrap_subset(dataset)) is None:
        targets = (torch.as_tensor(get_target(dataset[index])).flatten() for index in range(len(dataset)))
        return torch.stack([_count(one, num_classes) for one in targets]).sum(0)
    return _count(item_classes(dataset, get_target), num_classes)


def _count(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """How often each class comes (num_classes,), without those that do not count, such as -100 and 255."""
    counted = (classes >= 0) & (classes < num_classes) if num_classes else classes >= 0
    return torch.bincount(classes[counted], minlength=num_classes)


def item_classes(dataset: Any, get_target: GetTarget) -> torch.Tensor:
    """The class of each item (items,), from the dataset's `targets` or else from the items."""
    dataset, indices = subset_indices(dataset)
    if (targets := targets_of(dataset)) is not None:
        return torch.as_tensor(targets)[indices]
    if torch.as_tensor(get_target(dataset[int(indices[0])])).numel() > 1:
        raise UsageError(f"--balanced needs one class an item, and an item of {type(dataset).__name__} has several")
    return torch.as_tensor([int(get_target(dataset[index])) for index in indices.tolist()])
