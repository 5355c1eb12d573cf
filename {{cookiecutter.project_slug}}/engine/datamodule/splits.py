"""Random split of a dataset's indices into train, val and test, and what tells whether a split has changed since."""

import hashlib
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import IterableDataset

from engine.datamodule.item_fields import ItemFields
from engine.datamodule.seeding import reseed, subset_indices, targets_of
from engine.errors import UsageError


def split_indices(
    num_items: int, seed: int, val_fraction: float, test_fraction: float, classes: Any = None, groups: Any = None
) -> dict[str, torch.Tensor]:
    """Indices of the "train", "val" and "test" split, from the seed alone.

    A split with a fraction above 0 has at least one item, but train always keeps one. With 0 it is empty.

    classes: the class number of each item (items,), or None. Each split gets the same share of every class, up to
        rounding; a class of three items and more is in every split where these have room for it.
    groups: what each item belongs to (items,), or None. A group is in one split as a whole; the fractions are shares of
        the groups, whatever their size and the classes in them.

    Raises: UsageError: the fractions leave nothing to train on, or there are fewer groups than splits.
    """
    if groups is not None:
        names, numbers = np.unique(groups, return_inverse=True)  # (groups,), (items,)
        if len(names) < 1 + (val_fraction > 0) + (test_fraction > 0):
            raise UsageError(f"{len(names)} groups of items are too few: each is in one split as a whole")
        chosen = split_indices(len(names), seed, val_fraction, test_fraction)
        return {name: torch.from_numpy(np.flatnonzero(np.isin(numbers, one))) for name, one in chosen.items()}
    fractions = {"test": test_fraction, "val": val_fraction}
    if min(fractions.values()) < 0 or sum(fractions.values()) >= 1:
        given = f"--val_fraction {val_fraction} and --test_fraction {test_fraction}"
        raise UsageError(f"{given} leave nothing to learn from")
    left, splits = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed)), {}
    for name, fraction in fractions.items():
        size = max(1, round(num_items * fraction)) if fraction else 0
        size = max(0, min(size, len(left) - 1))
        if classes is None:
            taken = torch.arange(len(left)) < size
        else:
            taken = _stratified(torch.as_tensor(classes)[left], size, spare=2 if name == "test" and val_fraction else 1)
        splits[name], left = left[taken], left[~taken]
    return splits | {"train": left}


def _stratified(classes: torch.Tensor, size: int, spare: int) -> torch.Tensor:
    """Which `size` items to take (items,): of each class its share, rounded by the largest remainder.

    classes: of the items, (items,).
    spare: a class of more items than that goes first where its share would be rounded to none.
    """
    _, inverse, counts = classes.unique(return_inverse=True, return_counts=True)  # (items,), (C,)
    share = counts.double() * size / max(1, len(classes))
    taken = share.floor().long()
    first = (taken == 0) & (counts > spare)
    places = torch.arange(len(classes))
    drawn = torch.full_like(counts, len(classes)).scatter_reduce(0, inverse, places, "amin").argsort()  # breaks ties
    urgency = share - taken + 2 * first.double() - 2 * (counts == 1)
    order = drawn[urgency[drawn].argsort(descending=True, stable=True)]
    taken[order[: size - int(taken.sum())]] += 1
    by_class = inverse.argsort(stable=True)
    start = counts.cumsum(0) - counts  # of each class in by_class
    position = torch.empty_like(inverse)  # of each item within its class
    position[by_class] = places - start.repeat_interleave(counts)
    return position < taken[inverse]


def item_groups(dataset: Any) -> Any:
    """The dataset's `groups`: what each item belongs to, such as a patient, texts (items,); None where it has none.

    Raises: UsageError: there is not one for each item.
    """
    data, indices = subset_indices(dataset)
    groups: Any = getattr(data, "groups", None)
    if not hasattr(groups, "__len__"):
        return None
    names = groups.tolist() if hasattr(groups, "tolist") else [*groups]
    if len(names) != len(data) or any(isinstance(one, (list, tuple, np.ndarray)) for one in names):
        said = "says what each item belongs to, so that all of a group are in one split"
        given = f"one entry for each of the {len(data):,} items, or give that attribute another name"
        raise UsageError(f"`groups` of {type(data).__name__} {said}: give {given}")
    texts = [str(one) for one in names]
    if missing := sum(one in ("None", "nan", "NaT", "<NA>") for one in texts):
        raise UsageError(f"`groups` of {type(data).__name__} has none for {missing} items: give each one of its own")
    return np.array(texts)[indices.numpy()]


def _names(split: Any) -> tuple[str, list[Any]]:
    """The attribute of a dataset that names the items, and their entries in it; "" and none where there is none."""
    if not hasattr(split, "__len__"):
        return "", []
    data, indices = subset_indices(split)
    for attribute in ("ids", "paths", "samples", "imgs"):
        names = getattr(data, attribute, None)
        if names is not None and len(names) == len(data):
            return attribute, [names[index] for index in indices.tolist()]
    return "", []


def item_ids(split: Any) -> list[str] | None:
    """The dataset's names of the items: its `ids`, `paths`, `samples` or `imgs`, of pairs of these the first.

    Entries of `ids` that hold several values each, such as token ids, are no names.
    """
    attribute, names = _names(split)
    if attribute != "ids":
        names = [name[0] if isinstance(name, (tuple, list)) else name for name in names]
    names = [name.item() if getattr(name, "shape", None) == () else name for name in names]
    several = any(hasattr(name, "__len__") and not isinstance(name, (str, bytes)) for name in names)
    return list(map(str, names)) if attribute and not several else None


def fingerprint(split: Any, data_dir: str) -> dict[str, Any] | None:
    """What tells whether a split holds the same items in the same order; None of a stream, which has no length.

    That is the number of "items", and hashes: of the "indices" in the dataset that was split, of the "ids" (of paths,
    what follows `data_dir`), of the "files" of these names, of the "classes" in its `targets`, and
    the dataset's own attribute "fingerprint". Of other targets, there are up to 32 "values"; without an attribute
    `targets`, those of up to 4 items, which are fetched. Without a "fingerprint" of its own, the "inputs" of a dataset
    that was split are compared: tensors or arrays with an entry for each item, or else, without "files", the numbers in
    up to 4 items, where these are the same when they are fetched again. Those of a dataset with splits of its own are
    not: its arguments may change.
    """
    if not hasattr(split, "__len__") or isinstance(split, IterableDataset):
        return None
    data, indices = subset_indices(split)
    found: dict[str, Any] = {"items": len(indices)}
    if data is not split:
        found["indices"] = _hash(indices.numpy().tobytes())
    attribute, names = _names(split)
    if attribute:
        ids = [str(name[0] if isinstance(name, (tuple, list)) else name) for name in names]
        folders = [os.path.join(one, "") for one in (data_dir, os.path.normpath(data_dir))]  # `./a/` and `a`
        starts = (next(filter(one.startswith, folders), "") for one in ids)
        found["ids"] = hash_texts([one.removeprefix(start) for one, start in zip(ids, starts, strict=True)])
        found["earlier_ids"] = hash_texts([one.removeprefix(folders[0]) for one in ids])  # as they were
        with suppress(OSError):  # they are no files
            found["files"] = hash_files(ids)
    if isinstance(known := getattr(data, "fingerprint", None), str):
        found["fingerprint"] = known
    elif data is not split:
        found["inputs"] = _inputs(data, indices) or ({} if "files" in found else _fetched_inputs(data, indices))
    targets = targets_of(data)
    with suppress(TypeError, ValueError, NotImplementedError):  # targets that are no numbers: paths, for example
        if targets is None:
            reseed("fingerprint")
            values = [_scalar_target(data[index]) for index in indices[:: 1 + (len(indices) - 1) // 4].tolist()]
            found["values"] = [value for value in values if value is not None and math.isfinite(value)]
        elif (targets := torch.as_tensor(targets)).dim() == 1 and not targets.is_floating_point():
            found["classes"] = _hash(targets[indices].long().numpy().tobytes())
        else:
            some = indices[:: 1 + (len(indices) - 1) // 32]
            found["values"] = [float(targets[index].double().nan_to_num().mean()) for index in some]
    return found


def _inputs(data: Any, indices: torch.Tensor) -> dict[str, list[float]]:
    """Of each tensor or array with an entry for each item, up to 32 weighted means over 8 entries of `indices` each."""
    found = {}
    stored = {**getattr(data, "__dict__", {}), **{str(at): one for at, one in enumerate(getattr(data, "tensors", ()))}}
    for name, value in stored.items():
        if not isinstance(value, (torch.Tensor, np.ndarray)) or name == "targets" or value.shape[:1] != (len(data),):
            continue
        with suppress(TypeError, NotImplementedError):  # an array of texts, a sparse tensor
            found[name] = means = list[float]()
            for some in indices[:: 1 + (len(indices) - 1) // 256].split(8):
                means.append(_weighted_mean(value[some if isinstance(value, torch.Tensor) else some.numpy()]))
    return found


def _fetched_inputs(data: Any, indices: torch.Tensor) -> dict[str, list[float]]:
    """The weighted mean of each number, tensor or array in up to 4 items; {} where a second fetch gives others."""
    means: tuple[list[float], list[float]] = ([], [])
    with suppress(Exception):  # an item of texts; what is broken is raised in training
        for found in means:
            reseed("fingerprint")
            for index in indices[:: 1 + (len(indices) - 1) // 4].tolist():
                kinds = (torch.Tensor, np.ndarray, int, float)
                apply_to_collection(data[index], kinds, lambda one, found=found: found.append(_weighted_mean(one)))
    return {"__getitem__": means[0]} if means[0] and means[0] == means[1] else {}


def _weighted_mean(value: Any) -> float:
    entries = torch.as_tensor(value)
    entries = torch.view_as_real(entries) if entries.is_complex() else entries
    numbers = entries.flatten()[:: 1 + entries.numel() // 2**16].double().nan_to_num(0, 0, 0)
    weights = torch.linspace(1, 2, len(numbers), dtype=torch.double, device=numbers.device)
    return float((numbers * weights).mean().nan_to_num())


def difference(kept: dict[str, Any], now: dict[str, Any]) -> str:
    """How the fingerprint of a split differs from the one that was kept; "" where it does not.

    Values may differ by rounding, which is not the same on all processors.
    """
    if kept["items"] != now["items"]:
        return f"has {now['items']:,} items, and had {kept['items']:,}"
    names = kept.keys() & now.keys() - {"values", "inputs", "earlier_ids"}
    differing = [name for name in names if kept[name] not in (now[name], now.get(f"earlier_{name}"))]
    old, new = ({"": one.get("values", [])} | one.get("inputs", {}) for one in (kept, now))
    for name in old.keys() & new.keys():
        pairs = zip(old[name], new[name], strict=False)
        if any(not math.isclose(*pair, rel_tol=1e-3, abs_tol=1e-6) for pair in pairs):
            differing.append(name)
    if len(differing) == 1 and differing[0] in kept.get("inputs", {}):
        own = "if that is no input, give the dataset an attribute `fingerprint`, a text that is compared instead"
        return f"has other values, or in another order, in its `{differing[0]}` ({own})"
    return "has other items, or the same in another order" if differing else ""


def _scalar_target(item: Any) -> float | None:
    """The target of an item, where it is one number."""
    target = ItemFields().split(item).target
    target = torch.as_tensor([] if target is None or isinstance(target, dict) else target)
    return float(target) if target.numel() == 1 and not target.is_complex() else None


def hash_texts(texts: list[str]) -> str:
    """A hash of texts in their order, for an attribute `fingerprint` of a dataset."""
    return _hash("\0".join(texts).encode(errors="backslashreplace"))


def hash_files(paths: Sequence[str | Path]) -> str:
    """A hash of the sizes and of 32 KiB of files, for an attribute `fingerprint`; of 256 at most: disks may be far."""
    found = []
    for path in paths[:: 1 + (len(paths) - 1) // 256]:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            for start in ((size - 2**14) // 2, size - 2**14):  # pictures often end in the same black border
                file.seek(max(0, start))
                found.append(f"{size} {_hash(file.read(2**14))}")
    return hash_texts(found)


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
