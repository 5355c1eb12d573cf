"""The targets of a part: are they classes, how many of each, which weight has an item that all may be drawn alike."""

from typing import Any

import torch

from engine.datamodule.seeding import resolve_subset, unwrap_subset
from engine.errors import UsageError


def check(part: Any) -> None:
    """Finds a class number outside 0 .. num_classes - 1, where the dataset lists its targets."""
    part = unwrap_subset(part)
    classes, targets = getattr(part, "num_classes", None), getattr(part, "targets", None)
    if isinstance(classes, int) and targets is not None and len(targets):
        try:
            numbers = torch.as_tensor(targets)
        except (TypeError, ValueError):
            return  # no numbers, but names of files, say
        wrong = ((numbers < 0) & (numbers != -100)) | (numbers >= classes)  # -100: cross_entropy's "ignore this one"
        if numbers.dim() == 1 and not numbers.is_floating_point() and wrong.any():
            first = int(wrong.nonzero()[0])
            raise ValueError(
                f"item {first} of {type(part).__name__} is of class {numbers[first]}, not 0 to {classes - 1}"
            )


def balance(part: Any) -> torch.Tensor:
    """A weight for each item: one over the size of its class."""
    targets = of(part)
    if targets.dim() != 1 or targets.is_floating_point():
        raise UsageError(
            f"--balanced needs a class for each item, which {type(unwrap_subset(part)).__name__} does not have"
        )
    return 1.0 / torch.bincount(targets)[targets].double()


def of(part: Any) -> torch.Tensor:
    """The class of each item, from `targets`, or else from the items."""
    data, which = resolve_subset(part, list(range(len(part))))
    if hasattr(data, "targets"):
        return torch.as_tensor(data.targets)[torch.as_tensor(which)]
    if torch.as_tensor(target(data[which[0]])).numel() > 1:
        raise UsageError(f"--balanced draws items by their class, and one of {type(data).__name__} has several")
    return torch.as_tensor([int(target(data[index])) for index in which])


def target(item: Any) -> Any:
    """The target of an item or of a batch."""
    return item["target"] if isinstance(item, dict) else item[-1]


def counts(part: Any, many: int) -> torch.Tensor:
    """How many items (of masks: how many pixels) of each of so many classes there are, (classes,)."""
    if many and not hasattr(unwrap_subset(part), "targets"):
        every = (torch.as_tensor(target(part[index])).flatten() for index in range(len(part)))
        return torch.stack([one[one >= 0].bincount(minlength=many) for one in every]).sum(0)
    return torch.bincount(of(part), minlength=many)
