"""What `predict` may look at instead of the test part: image files, or the rows of a file, read by the dataset."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from engine.discovery import UsageError


def named(data: Any, images: str | None, rows: str | None) -> Dataset[Any] | None:
    """What --images or --rows name; None where neither is given.

    Raises: UsageError: both are.
    """
    if images is not None and rows is not None:
        raise UsageError("--images and --rows are two commands")
    return Images(Path(images), opener(data)) if images is not None else Rows(data, rows) if rows is not None else None


class Images(Dataset[Any]):
    """The image files below a folder, by path; an item is (image, whether it could be read).

    Raises: UsageError: there is none that can be read.
    """

    def __init__(self, folder: Path, open_image: Callable[[str], Tensor]) -> None:
        from PIL import Image

        Image.init()
        files = (path for path in folder.rglob("*") if path.suffix.lower() in Image.EXTENSION and path.is_file())
        self.ids, self.open_image = sorted(map(str, files)), open_image
        # What PIL raises for a file that is broken; anything else is a mistake in open_image.
        self.broken = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
        read = (image for index in range(len(self)) if (image := self._read(index)) is not None)
        self.blank = next(read, torch.empty(0)).clone().zero_()  # stands for one that cannot be read
        if not self.ids:
            raise UsageError(f"--images {folder}: there is no image file below it")
        if not self.blank.numel():
            raise UsageError(f"--images {folder}: none of its {len(self)} image files can be read, as {self.ids[0]}")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, bool]:
        image = self._read(index)
        return (self.blank, False) if image is None else (image, True)

    def _read(self, index: int) -> Tensor | None:
        try:
            return self.open_image(self.ids[index])
        except self.broken:
            return None


class Rows(TensorDataset):
    """The rows of a file, by what the dataset calls them; an item is (input, a 0 in the place of the target).

    Raises: UsageError: the dataset reads no files, or this one has no row.
    """

    def __init__(self, data: Any, path: str) -> None:
        read = data.knows("open_rows")
        if read is None:
            what = "open_rows(path), a method that makes of a file the names of its rows and their inputs (N, ...)"
            raise UsageError(f"--rows: {data.dataset_class.__name__} has no {what}")
        if not Path(path).is_file():
            raise UsageError(f"--rows {path}: there is no such file")
        self.ids, inputs = read(path)
        if not len(inputs):
            raise UsageError(f"--rows {path}: there is no row in it")
        super().__init__(inputs, torch.zeros(len(inputs)))


def opener(data: Any) -> Callable[[str], Tensor]:
    """How the dataset of the checkpoint makes an input of a file: its own way, or that of torchvision's folders."""
    own = data.knows("open_image")
    load, transform = data.knows("loader"), data.knows("transform")
    if own is None and not (load and transform):
        what = "open_image(path), a static method that makes of an image file what the network takes"
        raise UsageError(f"--images: {data.dataset_class.__name__} has no {what}")
    return own or (lambda path: transform(load(path)))
