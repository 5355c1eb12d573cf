"""The table of the splits, and the problems found in their items."""

import statistics
from typing import Any, NamedTuple

from engine.commands.preview.pictures import class_names, feature_names, file_sizes
from engine.commands.preview.split_statistics import FieldStatistics, SplitStatistics, duplicates

_MOST_CLASSES = 10  # that have a line each
_RARE = 5  # times less often than the most frequent class


class Finding(NamedTuple):
    """Something that may be wrong. no_batch: it may keep a batch from being made."""

    sentence: str
    details: list[str] = []
    no_batch: bool = False


def table(data: Any, splits: list[SplitStatistics]) -> list[str]:
    """Lines of a table: a column for each split."""
    rows = [["", *(split.name for split in splits)]]
    rows.append(["items", *("?" if split.length is None else f"{split.length:,}" for split in splits)])
    looked = [split.looked + len(split.broken) for split in splits]
    part = looked != [split.length for split in splits]
    rows.append(["items read (--check_all: all)" if part else "items read", *(f"{count:,}" for count in looked)])
    if any(split.broken for split in splits):
        rows.append(["cannot be read", *(f"{len(split.broken):,}" for split in splits)])
    names = _class_names(data, splits)
    counts = [[split.classes[number] for number in range(len(names))] for split in splits]
    if len(names) > _MOST_CLASSES:
        rows.append([f"each of {len(names)} classes", *(f"{min(one):,} to {max(one):,}" for one in counts)])
    else:
        for number, name in enumerate(names):
            shares = (f"{one[number]:,} ({100 * one[number] / max(1, sum(one)):.3g} %)" for one in counts)
            rows.append([f"class {name}", *shares])
    sizes = [file_sizes([name for name, content in split.contents.items() if not content]) for split in splits]
    if any(sizes):
        rows.append(["files, width x height", *sizes])
    for key in dict.fromkeys(key for split in splits for key in split.values):
        if not (names and key == "target" and _counted(splits) == "items"):
            rows += _value_rows(key, [split.values.get(key) for split in splits])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _counted(splits: list[SplitStatistics]) -> str:
    """What has a class each: "items", or where a target has the shape (H, W) "pixels", or "positions" of a sequence."""
    kinds = [kind for split in splits if "target" in split.values for kind in split.values["target"].kinds]
    of = "pixels" if any(", " in kind for kind in kinds) else "positions"
    return "items" if all(kind.endswith("()") for kind in kinds) else of


def _class_names(data: Any, splits: list[SplitStatistics]) -> list[str]:
    last = max((number for split in splits for number in split.classes), default=None)
    return [] if last is None else class_names(data, last + 1)


def _value_rows(key: str, values: list[FieldStatistics | None]) -> list[list[str]]:
    """What an entry is, and its numbers."""
    kinds = list(dict.fromkeys(kind for one in values if one for kind in one.kinds))
    label = f"{key}: {kinds[0]}" if len(kinds) == 1 else f"{key}: {len(kinds)} kinds, such as {kinds[0]}"
    rows: dict[str, list[str]] = {}
    for at, one in enumerate(values):
        cells = {label: ""}
        if one and one.lengths:
            cells["  length, median"] = f"{min(one.lengths)} to {max(one.lengths)}, {statistics.median(one.lengths):g}"
        elif one and one.count:
            cells["  mean, std"] = ", ".join(f"{number:.3g}" for number in one.mean_std())
            cells["  from, to"] = f"{one.low:.4g}, {one.high:.4g}"
        if one and one.nan + one.inf:
            cells["  NaN, infinite"] = f"{one.nan:,}, {one.inf:,}"
        for name, cell in cells.items():
            rows.setdefault(name, [""] * len(values))[at] = cell
    return [[name, *cells] for name, cells in rows.items()]


def problems(data: Any, splits: list[SplitStatistics]) -> list[Finding]:
    """What may be wrong, the worst first."""
    found = []
    if broken := [line for split in splits for _, line in sorted(split.broken)]:
        found.append(Finding(f"{_count(len(broken), 'item')} cannot be read", broken, no_batch=True))
    return [*found, *_duplicates(data, splits), *_values(data, splits), *_classes(data, splits)]


def _duplicates(data: Any, splits: list[SplitStatistics]) -> list[Finding]:
    groups, found = duplicates(splits), []
    targets = {(split.name, name): target for split in splits for name, target in split.targets.items()}
    names = _class_names(data, splits)

    def text(split: str, name: str, shown: bool) -> str:
        target = targets.get((split, name))
        label = f", {names[target]}" if shown and isinstance(target, int) and 0 <= target < len(names) else ""
        return f"{name} ({split}{label})"

    for said, shown in (("in two splits", False), ("twice, with different targets", True)):
        keys = [{targets.get(one) if shown else one[0] for one in group} - {None} for group in groups]
        different = [group for group, some in zip(groups, keys, strict=True) if len(some) > 1]
        if different:
            details = [" = ".join(text(*one, shown=shown) for one in group) for group in different]
            are = "are" if len(different) > 1 else "is"
            found.append(Finding(f"{_count(len(different), 'item')} {are} {said}", details))
    if drawn := [split.name for split in splits if split.drawn and not split.contents]:
        said = f"of the {' and '.join(drawn)} split no duplicates can be found: its items differ at each reading"
        found.append(Finding(said))
    return found


def _values(data: Any, splits: list[SplitStatistics]) -> list[Finding]:
    found = []
    for split in splits:
        for key, values in split.values.items():
            where = f"{key} in the {split.name} split"
            whole = data.collate_of(data.split(split.name)) or data.attribute("__getitems__")
            if len(values.kinds) > 1 and not whole:
                kinds = [f"{kind}: {_count(count, 'item')}" for kind, count in values.kinds.most_common()]
                said = f"{where} is of different kinds, which make no batch without a collate_fn"
                found.append(Finding(said, kinds, no_batch=True))
            if values.columns is not None:
                found += _columns(data, where, values, split.name == "train")
            elif values.nan:
                found.append(Finding(f"{where} has {values.nan:,} NaN"))
            if values.inf:
                found.append(Finding(f"{where} has {values.inf:,} infinite numbers"))
    return found


def _columns(data: Any, where: str, values: FieldStatistics, is_train: bool) -> list[Finding]:
    """Columns that are missing in all items or in some, and in the train split those that are always the same."""
    assert values.columns is not None
    low, high, missing = values.columns
    names = feature_names(data, len(low)) or [f"column {at}" for at in range(len(low))]
    number = values.items
    empty = [names[at] for at in (missing == number).nonzero().flatten().tolist()]
    partly = ((missing > 0) & (missing < number)).nonzero().flatten().tolist()
    gaps = [f"{names[at]}: {_count(int(missing[at]), 'item')}" for at in partly]
    same = [f"{names[at]}: {low[at]:.4g}" for at in ((low == high) & (missing < number)).nonzero().flatten().tolist()]
    found = [Finding(f"{where} is NaN in every item, in {_count(len(empty), 'column')}", empty)] if empty else []
    found += [Finding(f"{where} is NaN in some items, in {_count(len(gaps), 'column')}", gaps)] if gaps else []
    if same and is_train and number > 1:
        found.append(Finding(f"{where} is the same in every item, in {_count(len(same), 'column')}", same))
    return found


def _classes(data: Any, splits: list[SplitStatistics]) -> list[Finding]:
    names, found = _class_names(data, splits), []
    for split in splits:
        if absent := [name for number, name in enumerate(names) if not split.classes[number]] if split.classes else []:
            whole = split.length in (split.looked + len(split.broken), sum(split.classes.values()))
            said = "no item" if whole else "no item among those read"
            found.append(Finding(f"the {split.name} split has {said} of {len(absent)} of the classes", absent))
    counts = sorted((splits[0].classes[number], name) for number, name in enumerate(names)) if splits else []
    if len(counts) > 1 and counts[-1][0] >= _RARE * max(1, counts[0][0]):
        (few, rare), (many, frequent) = counts[0], counts[-1]
        share = 100 * many / sum(count for count, _ in counts)
        said = f"{many:,} train {_counted(splits)} are of class {frequent} and {few:,} of class {rare}"
        found.append(Finding(f"{said}: always predicting {frequent} is right in {share:.3g} %"))
    return found


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
