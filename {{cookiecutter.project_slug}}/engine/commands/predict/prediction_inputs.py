"""Inputs of `predict` beside the test split: image files, or the rows of a file, read by the dataset."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from engine.errors import UsageError


def prediction_dataset(data: Any, images: str | None, rows: str | None) -> Dataset[Any] | None:
    """The dataset that --images or --rows means; None where neither is given.

    Raises: UsageError: both are, or the dataset opens no images.
    """
    if images is not None and rows is not None:
        raise UsageError("--images and --rows cannot be combined: run predict once for each")
    if images is not None:
        if (open_image := data.image_opener()) is None:
            method = "open_image(path), a static method that makes of an image file what the network takes"
            raise UsageError(f"--images: {data.dataset_class.__name__} has no {method}")
        return ImageFiles(Path(images), open_image)
    return FileRows(data, rows) if rows is not None else None


class ImageFiles(Dataset[Any]):
    """The image files below a folder, by path, or one file; an item is (image, whether it could be read).

    Raises: UsageError: there is none that can be read.
    """

    def __init__(self, folder: Path, open_image: Callable[[str], Tensor]) -> None:
        from PIL import Image

        Image.init()
        # What PIL raises for a file that is broken; anything else is a mistake in open_image.
        self.broken = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
        self.open_image = open_image
        images = (path for path in _files(folder) if path.suffix.lower() in Image.EXTENSION and path.is_file())
        self.ids = sorted(str(path) for path in images if path.name[0] != ".")
        if not folder.exists():
            raise UsageError(f"--images {folder}: there is no such folder or file")
        if not self.ids:
            raise UsageError(f"--images {folder}: there is no image file below it")
        readable = (image for path in self.ids if isinstance(image := self._read(path), Tensor))
        if (first := next(readable, None)) is None:
            reason = f"none of its {len(self)} image files can be read, as {self.why(0)}"
            raise UsageError(f"--images {folder}: {reason}")
        self.blank = torch.zeros_like(first)  # stands for one that cannot be read

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, bool]:
        image = self._read(self.ids[index])
        return (image, True) if isinstance(image, Tensor) else (self.blank, False)

    @staticmethod
    def collate_fn(items: list[Any]) -> Any:
        """A batch, of images of one size."""
        if len({image.shape for image, _ in items}) > 1:
            raise UsageError("--images: they are of different sizes, so each is a batch: --batch_size 1")
        return default_collate(items)

    def why(self, index: int) -> str:
        """The error for a file that cannot be read."""
        path, reason = self.ids[index], str(self._read(self.ids[index]))
        return reason if path in reason else f"{path} ({reason})"

    def _read(self, path: str) -> Tensor | Exception:
        try:
            image = self.open_image(path)
        except self.broken as error:
            return error
        if not isinstance(image, Tensor):
            raise UsageError(f"--images: open_image returns {type(image).__name__}, where a tensor is expected")
        return image


def _files(folder: Path) -> Iterator[Path]:
    """The file, or the files below a folder, those of folders that are links too; each folder once."""
    if folder.is_file():
        yield folder
    visited = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(root))
        folders[:] = sorted(one for one in folders if os.path.realpath(os.path.join(root, one)) not in visited)
        yield from (Path(root, name) for name in names)


class FileRows(TensorDataset):
    """The rows of a file, with the names that the dataset gives them; an item is (input, a 0 instead of the target).

    Raises: UsageError: the dataset reads no files, or returns something else, or this one has no row.
    """

    def __init__(self, data: Any, path: str) -> None:
        read = data.attribute("open_rows")
        if read is None:
            method = "open_rows(path), a method that makes of a file the names of its rows and their inputs (N, ...)"
            raise UsageError(f"--rows: {data.dataset_class.__name__} has no {method}")
        if not Path(path).is_file():
            raise UsageError(f"--rows {path}: there is no such file")
        found = read(path)
        names, inputs = found if isinstance(found, (tuple, list)) and len(found) == 2 else ((), None)
        if not isinstance(inputs, Tensor) or len(names) != len(inputs):
            what = "a name for each row, and a tensor of their inputs (N, ...)"
            raise UsageError(f"--rows: {data.dataset_class.__name__}.open_rows should return {what}")
        self.ids = names
        if not len(inputs):
            raise UsageError(f"--rows {path}: there is no row in it")
        super().__init__(inputs, torch.zeros(len(inputs)))
