"""How `predict` writes what a network says: a table, an array, or a picture for each item; goes with predict.py."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import UsageError


def table(
    path: Path, rows: Iterator[Any], ids: list[str] | None, width: int, classes: bool, names: Any, decode: Any
) -> None:
    """A CSV file with a row for each of `rows`, pairs of an item's number and its values (width,).

    classes: the values are probabilities, of classes called `names`. decode: makes a text of values, or is None.
    """
    part = path.with_suffix(".csv.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["index", *(["id"] if ids else []), *(["class"] if classes else []), *(["name"] if names else [])]
        values_head = ["text"] if decode else [f"{'p' if classes else 'y'}{number}" for number in range(width)]
        writer.writerow([*head, *values_head])
        for number, values in rows:
            row = [number, *([ids[number]] if ids else [])]
            if classes:
                best = int(values.argmax())
                row += [best, *([names[best]] if names else [])]
            said = [decode(values.astype(int).tolist())] if decode else [f"{value:.6g}" for value in values.tolist()]
            writer.writerow([*row, *said])
    part.replace(path)


def array(path: Path, rows: Iterator[Any], shape: tuple[int, ...]) -> None:
    """The values of `rows`, in their order, as an array of that shape: .npy or .pt."""
    part = path.with_suffix(".npy.part")
    found = np.lib.format.open_memmap(part, "w+", np.float32, shape)
    for at, (_, values) in enumerate(rows):
        found[at] = values
    found.flush()
    if path.suffix == ".npy":
        part.replace(path)
        return
    torch.save(torch.from_numpy(found), path.with_suffix(".pt.part"))  # from the mapped file, not through memory
    path.with_suffix(".pt.part").replace(path)
    part.unlink()


class Pictures:
    """A PNG file for each item, called like the file that the item came from, or else by its number.

    Of shares of classes (C, H, W) a mask: for each pixel the number of its likeliest class, in colours of their own. Of
    images (1|3, H, W) the image, with the mean and deviation of the dataset's `preprocessing` undone.
    """

    def __init__(self, folder: Path, data: Any, ids: list[str] | None) -> None:
        """data: says what the numbers in its masks are (`mask_values`) and how its images were prepared."""
        self.folder, self.names = folder, _names(ids) if ids else None
        how = data.attribute("preprocessing")
        self.how = how if isinstance(how, dict) else {}
        self.mask_values = data.attribute("mask_values")

    def write(self, numbers: Sequence[int], outputs: Tensor, classes: bool) -> None:
        """Writes outputs (N, C, H, W) of the items of those numbers; shares of classes, or images.

        Raises:
            UsageError: they are neither.
        """
        from PIL import Image

        if outputs.dim() != 4 or not (classes or outputs.shape[1] in (1, 3)):
            raise UsageError(
                f"--format png: an output of shape {tuple(outputs.shape[1:])} is no picture: take npy or pt"
            )
        drawn = self._masks(outputs) if classes else self._images(outputs)  # (N, H, W) or (N, H, W, 3), bytes
        for number, pixels in zip(numbers, drawn, strict=True):
            path = self.folder / f"{self.names[number] if self.names else f'{number:06}'}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels)
            if classes and pixels.dtype == np.uint8:
                image.putpalette(_palette())
            image.save(path)

    def _masks(self, shares: Tensor) -> np.ndarray:
        values = np.array(self.mask_values or range(shares.shape[1]))
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)[shares.argmax(1).numpy()]

    def _images(self, images: Tensor) -> np.ndarray:
        mean, std = (torch.tensor(self.how.get(*one)).view(-1, 1, 1) for one in (("mean", 0.0), ("std", 1.0)))
        levels = (images * std + mean) / self.how.get("white", 1) * 255
        pixels = levels.round().clamp(0, 255).byte().movedim(1, -1)  # (N, H, W, C)
        return (pixels[..., 0] if pixels.shape[-1] == 1 else pixels).numpy()


def _names(ids: list[str]) -> list[str] | None:
    """Their paths below the folder that all of them are in, without the ending where that leaves them different.

    None where two of them are called alike: one picture would be written over the other.
    """
    root = os.path.commonpath([os.path.dirname(one) for one in ids])
    names = [os.path.relpath(one, root or ".") for one in ids]
    short = [os.path.splitext(one)[0] for one in names]
    return next((some for some in (short, names) if len(set(some)) == len(ids)), None)


def _palette() -> list[int]:
    """Colours of the numbers 0 to 255, as in the masks of PASCAL VOC: red, green and blue take their bits in turn."""
    numbers = np.arange(256)
    channels = [sum(((numbers >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return np.stack(channels, 1).flatten().tolist()
