"""The cut of a dataset into what is learnt from, validated on and tested on: no item is in two parts."""

import torch

from engine.errors import UsageError


def split_indices(items: int, seed: int, val_fraction: float, test_fraction: float) -> dict[str, torch.Tensor]:
    """Which of so many items are in the "train", the "val" and the "test" part: indices, which follow from the seed.

    A part with a fraction above 0 has an item at least, but one is always left to learn from. With 0 it is empty.

    Raises:
        UsageError: the fractions leave nothing to learn from.
    """
    fractions = {"test": test_fraction, "val": val_fraction}
    if min(fractions.values()) < 0 or sum(fractions.values()) >= 1:
        raise UsageError(
            f"--val_fraction {val_fraction} and --test_fraction {test_fraction} leave nothing to learn from"
        )
    left, parts = torch.randperm(items, generator=torch.Generator().manual_seed(seed)), {}
    for name, fraction in fractions.items():
        taken = max(1, round(items * fraction)) if fraction else 0
        taken = max(0, min(taken, len(left) - 1))
        parts[name], left = left[:taken], left[taken:]
    return parts | {"train": left}
