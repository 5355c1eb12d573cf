"""The files that `predict` writes: a table, an array, or an image for each item."""

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.checkpointing.atomic_write import atomic_file, atomic_folder_update
from engine.errors import UsageError, escape_formula, printable


def write_table(
    path: Path, records: Iterator[np.ndarray], ids: list[str] | None, classifies: bool, names: Any, decode: Any
) -> None:
    """Writes a CSV file with a row for each record: of an item the "number", its "values" (W,) and "true" ones (T,).

    T is 0 where the true values are not known. classifies: the values are probabilities, of classes called `names`, and
    the true one is a class. decode: makes a text of values, or is None. An id or text that a spreadsheet would take for
    a formula gets a ' in front, and a line says so.
    """
    changed = set[str]()

    def cell(text: Any) -> str:
        if (plain := escape_formula(str(text))) != text:
            changed.add(plain)
        return plain

    def class_columns(name: str, numbers: list[int]) -> dict[str, list[Any]]:
        """The numbers of classes and, where these have names, those too; a class that does not count has none."""
        named: dict[str, list[Any]] = {name: numbers}
        if names:
            title = {"class": "name"}.get(name, f"{name}_name")
            texts = {number: cell(names[number]) if number >= 0 else "" for number in set(numbers)}
            named[title] = [texts[number] for number in numbers]
        return named

    with (
        atomic_file(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,  # a path may be no UTF-8
    ):
        writer, head = csv.writer(file), list[str]()
        for some in records:
            columns: dict[str, list[Any]] = {"index": some["number"].tolist()}
            values, true = some["values"], some["true"]
            if ids:
                columns["id"] = [cell(ids[number]) for number in columns["index"]]
            if classifies:
                columns |= class_columns("true", true[:, 0].astype(int).tolist()) if true.shape[1] else {}
                columns |= class_columns("class", values.argmax(1).tolist())
            elif decode and true.shape[1]:
                columns["true"] = [cell(decode(one)) for one in true.astype(int).tolist()]
            else:
                columns |= _number_columns("true", true, single="true")
            if decode:
                columns["text"] = [cell(decode(one)) for one in values.astype(int).tolist()]
            else:
                columns |= _number_columns("p" if classifies else "y", values)
            if not head:
                writer.writerow(head := [*columns])
            writer.writerows(zip(*columns.values(), strict=True))
    if changed:
        such = f"{len(changed)} of its texts, such as {printable(min(changed))}"
        print(f"{path}: a ' is in front of {such}: a spreadsheet would take them for formulas", file=sys.stderr)


def _number_columns(name: str, numbers: np.ndarray, single: str = "") -> dict[str, list[str]]:
    """The columns of numbers (N, W), called name0, name1 ..., or `single` where it is given and there is but one."""
    titles = [single] if single and numbers.shape[1] == 1 else [f"{name}{at}" for at in range(numbers.shape[1])]
    with np.errstate(over="ignore"):
        short = numbers.astype(np.float32)  # whose str is 0.1, and not 0.10000000149011612
    short = short if np.array_equal(short, numbers, equal_nan=True) else numbers
    whole = ".16g" if (numbers == numbers.round()).all() else ""  # true classes, counts or ids, as floats
    form = "d" if np.issubdtype(numbers.dtype, np.integer) else ".6g" if name == "p" else whole
    shown = numbers if form else short.astype(str).astype(float)
    return {
        title: [f"{one:{form}}".removesuffix(".0") for one in column]
        for title, column in zip(titles, shown.T.tolist(), strict=True)
    }


def write_array(path: Path, records: Iterator[np.ndarray], count: int, item: np.dtype[Any]) -> None:
    """Writes the "values" of `count` records, in their order, each of the type and shape of `item`: .npy or .pt."""
    with atomic_folder_update(path.parent) as folder:
        npy = folder / f"{path.stem}.npy"
        array = np.lib.format.open_memmap(npy, "w+", item.base, (count, *item.shape))
        at = 0
        for some in records:
            array[at : at + len(some)] = some["values"]
            at += len(some)
        array.flush()
        if path.suffix == ".pt":
            with (folder / path.name).open("wb") as file:
                torch.save(torch.from_numpy(array), file)  # from the mapped file, not through memory
            npy.unlink()


def is_picture(shape: tuple[int, ...], classifies: bool) -> bool:
    """Whether an output of that shape is an image, or probabilities of the classes of its pixels."""
    return len(shape) == 3 and (classifies or shape[0] in (1, 3))


class ImageWriter:
    """Writes a PNG file for each item, named like the file that the item came from, or else by its number.

    Of class probabilities (C, H, W) a mask: for each pixel the number of its likeliest class, in a colour of its own.
    Of images (1|3, H, W) the image, with the mean and deviation of the dataset's `preprocessing` undone.
    """

    def __init__(self, folder: Path, data: Any, ids: list[str] | None) -> None:
        """data: has the values of its masks (`mask_values`) and how its images were prepared (`preprocessing`)."""
        self.folder, self.names = folder, _file_names(ids) if ids else None
        preprocessing = data.attribute("preprocessing")
        self.preprocessing = preprocessing if isinstance(preprocessing, dict) else {}
        self.mask_values = data.attribute("mask_values")

    def write(self, numbers: Sequence[int], outputs: Tensor, classifies: bool) -> None:
        """Writes outputs (N, C, H, W) of the items of those numbers: class probabilities, or images.

        Raises: UsageError: they are neither.
        """
        from PIL import Image

        if not is_picture(shape := tuple(outputs.shape[1:]), classifies):
            raise UsageError(f"--format png: an output of shape {shape} is no picture: take npy or pt")
        images = self._masks(outputs) if classifies else self._images(outputs)  # (N, H, W) or (N, H, W, 3), bytes
        for number, pixels in zip(numbers, images, strict=True):
            path = self.folder / f"{self.names[number] if self.names else f'{number:06}'}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels)
            if classifies and pixels.dtype == np.uint8:
                image.putpalette(_palette())
            with atomic_file(path) as part:
                image.save(part, "png")

    def _masks(self, probabilities: Tensor) -> np.ndarray:
        values = np.array(self.mask_values or range(probabilities.shape[1]))
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)[probabilities.argmax(1).numpy()]

    def _images(self, images: Tensor) -> np.ndarray:
        values = (self.preprocessing.get("mean", 0.0), self.preprocessing.get("std", 1.0))
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in values)
        levels = (images * std + mean) / self.preprocessing.get("white", 1) * 255
        pixels = levels.round().clamp(0, 255).byte().movedim(1, -1)  # (N, H, W, C)
        return (pixels[..., 0] if pixels.shape[-1] == 1 else pixels).numpy()


def _file_names(ids: list[str]) -> list[str] | None:
    """The paths below the folder that all are in, without the suffix where that leaves them different.

    None where two are the same: one image would be written over the other.
    """
    root = os.path.commonpath([os.path.dirname(name) for name in ids])
    names = [os.path.relpath(name, root or ".") for name in ids]
    short = [os.path.splitext(name)[0] for name in names]
    return next((unique for unique in (short, names) if len(set(unique)) == len(ids)), None)


def _palette() -> list[int]:
    """Colours of the numbers 0 to 255, as in the masks of PASCAL VOC: red, green and blue take their bits in turn."""
    numbers = np.arange(256)
    channels = [sum(((numbers >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return np.stack(channels, 1).flatten().tolist()
