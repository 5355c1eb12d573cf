"""Pictures of the first batches, as PNG files, or as tables where they are texts or rows."""

import html
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.commands.preview.split_statistics import SplitStatistics, named, named_targets
from engine.datamodule.item_fields import Fields
from engine.datamodule.resumable_loader import ResumableLoader
from engine.datamodule.seeding import SeededBatch, SeededDataset, resolve_subset
from engine.datamodule.splits import item_ids
from engine.logging import figures, plots

_ITEMS, _FRAMES, _FEATURES, _DRAWS = 8, 8, 20, 3  # that are shown


class FirstBatch(NamedTuple):
    """The first batch of a split, and further draws of the same items.

    names: of the items. raw: what they were before the dataset prepared them, by its `raw_items`. Both may be [].
    """

    batches: list[Any]
    names: list[str] = []
    raw: list[dict[str, Any]] = []


def first_batch(data: Any, name: str, drawn: bool) -> FirstBatch:
    """The first batch as training or validation gets it, and two further draws, without the items that cannot be read.

    Of a stream, and of what is not drawn at random, there is one draw.
    """
    loader = data.train_dataloader() if name == "train" else data.val_dataloader()
    loader = getattr(loader, "flattened", loader)
    while isinstance(loader, (list, tuple, dict)):  # of a LightningDataModule
        loader = next(iter(loader.values() if isinstance(loader, dict) else loader))
    if not isinstance(loader, ResumableLoader) or loader.iterable:
        return FirstBatch([next(iter(loader))])
    indices = list(next(iter(loader.epoch_sampler)))
    dataset, collate, names = SeededDataset(loader.data), loader.loader.collate_fn, item_ids(loader.data)
    readable = [index for index in indices if _is_readable(dataset, index)]
    keys = [("batch", data.seed, epoch, 0, 0) for epoch in range(_DRAWS if drawn else 1)]
    batches = [collate(dataset.__getitems__(SeededBatch(readable, key))) for key in keys] if readable else []
    whole, places = resolve_subset(loader.data, readable)
    raw = whole.raw_items(places[:_ITEMS]) if hasattr(whole, "raw_items") else []
    return FirstBatch(batches, [names[index] for index in readable] if names else [], raw)


def _is_readable(dataset: SeededDataset, index: int) -> bool:
    try:
        dataset.__getitems__(SeededBatch([index], ("preview", index, 0)))
        return True
    except Exception:  # it is among the broken ones
        return False


def draw_batch(data: Any, split: SplitStatistics, found: FirstBatch) -> dict[str, Callable[[], Any]]:
    """How to draw the first items of a batch, by the name of the picture; nothing of what is not made of pixels."""
    draws = [data.item_fields.split(batch) for batch in found.batches]
    clips = [one for one in map(_clips, draws) if one is not None]
    images = [one[:_ITEMS] for fields in draws if (one := plots.find_images(_tensors(fields))) is not None]
    label = f"first items of the {split.name} split"
    drawn = [f"draw {at}" for at in range(1, len(draws) + 1)] if len(draws) > 1 else ["input"]
    if clips:
        pairs = [*zip(drawn, clips, strict=True)]
        frames = {f"item {at + 1}, {draw}": clip[at] for at in range(min(3, len(clips[0]))) for draw, clip in pairs}
        return {f"{split.name}_clips": partial(plots.images, [*frames.values()], [], label, [*frames])}
    if not images:
        return {}
    targets: list[Any] = [fields.target[:_ITEMS] if isinstance(fields.target, Tensor) else None for fields in draws]
    first = targets[0]
    is_mask = first is not None and first.dim() == 3 and not first.is_floating_point()
    if is_mask and first.shape[1:] == images[0].shape[2:]:
        classes = class_names(data, int(first.max()) + 1)
        return {
            f"{split.name}_masks{at}": partial(plots.masks, image, {"target": mask}, classes, f"{label}, {draw}")
            for at, (draw, image, mask) in enumerate(zip(drawn, images, targets, strict=True), 1)
        }
    raw, labels = _files(found.names[:_ITEMS], images[0]) if images[0].dim() == 4 else None, list[str]()
    rows = {} if raw is None else {"file": raw}
    for draw, image, target in zip(drawn, images, targets, strict=True):
        rows[draw] = image
        if target is not None and plots.find_images([target]) is not None:
            rows[f"target of {draw}" if len(draws) > 1 else "target"] = target
    if first is not None and first.shape == (len(images[0]),):
        labels = [target_text(data, one) for one in first]
        labels += [""] * (sum(map(len, rows.values())) - len(labels))
    return {f"{split.name}_batch": partial(plots.images, [*rows.values()], labels, label, [*rows])}


def table(data: Any, found: FirstBatch) -> list[list[str]]:
    """The first items of a batch of texts or rows as a person reads them, below a row of names; [] of anything else."""
    fields = data.item_fields.split(found.batches[0])
    columns: dict[str, list[str]] = {"": found.names[:_ITEMS]} if found.names else {}
    columns |= {f"raw {key}": [str(one[key]) for one in found.raw] for key in (found.raw[0] if found.raw else ())}
    decode = data.attribute("decode")
    for key, value in named(fields).items():
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], str):
            columns[key] = list(value[:_ITEMS])
        elif isinstance(value, Tensor) and value.dim() == 2 and not value.is_complex():
            if not value.is_floating_point() and decode:
                columns[key] = [decode(one.tolist()) for one in value[:_ITEMS]]
            else:
                shown = min(value.shape[1], _FEATURES)
                texts = feature_names(data, value.shape[1]) or [f"{key}[{at}]" for at in range(shown)]
                columns |= {texts[at]: [f"{one:.4g}" for one in value[:_ITEMS, at].tolist()] for at in range(shown)}
    if not columns.keys() - {""}:
        return []
    for key, value in named_targets(fields).items():
        columns[key] = [target_text(data, one) for one in value[:_ITEMS]]
    return [[*columns], *map(list, zip(*columns.values(), strict=False))]


def html_table(rows: list[list[str]]) -> str:
    """A table as HTML, whose first row is its head."""
    head, *cells = [[html.escape(cell) for cell in row] for row in rows]
    lines = [f"<tr><th>{'<th>'.join(head)}", *(f"<tr><td>{'<td>'.join(row)}" for row in cells)]
    return f"<table>{''.join(lines)}</table>"


def target_text(data: Any, target: Any) -> str:
    """The target of an item: its class by name, its number in the unit of the file, or a text."""
    if not isinstance(target, Tensor):
        return str(target)
    decode, whole = data.attribute("decode"), not target.is_floating_point()
    if target.numel() == 1 and whole and data.attribute("num_classes") != 1:
        return class_names(data, int(target) + 1)[int(target)] if int(target) >= 0 else str(int(target))
    if target.dim() == 1 and whole and decode:
        return str(decode(target.tolist()))
    values = (target if whole else data.in_unit(target)).flatten().tolist()
    return ", ".join(f"{one:.4g}" for one in values[:10])


def class_names(data: Any, least: int) -> list[str]:
    """The dataset's `classes`, or the numbers of at least so many."""
    names, number = data.attribute("classes"), data.attribute("num_classes")
    if isinstance(names, (list, tuple)) and len(names) >= least:
        return [*map(str, names)]
    return [str(one) for one in range(max(least, number if isinstance(number, int) else 0))]


def feature_names(data: Any, number: int) -> list[str]:
    """The dataset's `feature_names`, where these are the names of so many features, or []."""
    names = data.attribute("feature_names")
    return [*map(str, names)] if names is not None and len(names) == number else []


def file_sizes(names: list[str]) -> str:
    """The least and the greatest width and height of image files, of 200 at most; "" of others."""
    from PIL import Image

    sizes = []
    for name in names[:: 1 + len(names) // 200]:
        with suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError), Image.open(name) as image:
            sizes.append(image.size)
    if not sizes:
        return ""
    widths, heights = zip(*sizes, strict=True)
    least, greatest = f"{min(widths)}x{min(heights)}", f"{max(widths)}x{max(heights)}"
    return least if least == greatest else f"{least} to {greatest}"


def chart(lines: dict[str, Any], xlabel: str, ylabel: str, steps: list[int] | None = None) -> Any:
    """A figure with a line for each name over the steps, or without these with a histogram of finite numbers (N,)."""
    figure = figures.new_figure(6, 3)
    axes = figure.subplots()
    for name, values in lines.items():
        if steps is None:
            axes.hist(values, bins=40, density=True, histtype="step", label=name)
        else:
            axes.plot(steps, values, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def _tensors(fields: Fields) -> list[Any]:
    return [*fields.args, *fields.kwargs.values()]


def _clips(fields: Fields) -> Tensor | None:
    """Clips (B, T, 1|3, H, W), of evenly spaced frames, where an input is such, or (B, 1|3, T, H, W)."""
    for value in _tensors(fields):
        if isinstance(value, Tensor) and value.dim() == 5 and not value.is_complex():
            clips = value if value.shape[2] in (1, 3) else value.movedim(2, 1)
            if clips.shape[2] in (1, 3):
                return clips[:, torch.linspace(0, clips.shape[1] - 1, min(_FRAMES, clips.shape[1])).long()]
    return None


def _files(names: list[str], images: Tensor) -> Tensor | None:
    """The image files as they are, shrunk into (N, 3, H, W), bytes; None where the names are no such files."""
    from PIL import Image, ImageOps

    height, width = images.shape[2:]
    rows = []
    for name in names:
        try:
            with Image.open(name) as image:
                upright = ImageOps.pad(ImageOps.exif_transpose(image).convert("RGB"), (width, height), color="white")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None
        rows.append(torch.from_numpy(np.array(upright)).movedim(2, 0))
    return torch.stack(rows) if rows else None
