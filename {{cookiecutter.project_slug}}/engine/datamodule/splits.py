"""Random split of a dataset's indices into train, val and test: no item is in two of them."""

import torch

from engine.errors import UsageError


def split_indices(num_items: int, seed: int, val_fraction: float, test_fraction: float) -> dict[str, torch.Tensor]:
    """Indices of the "train", "val" and "test" split, from the seed alone.

    A split with a fraction above 0 has at least one item, but train always keeps one. With 0 it is empty.

    Raises:
        UsageError: the fractions leave nothing to train on.
    """
    fractions = {"test": test_fraction, "val": val_fraction}
    if min(fractions.values()) < 0 or sum(fractions.values()) >= 1:
        given = f"--val_fraction {val_fraction} and --test_fraction {test_fraction}"
        raise UsageError(f"{given} leave nothing to learn from")
    left, splits = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed)), {}
    for name, fraction in fractions.items():
        size = max(1, round(num_items * fraction)) if fraction else 0
        size = max(0, min(size, len(left) - 1))
        splits[name], left = left[:size], left[size:]
    return splits | {"train": left}
