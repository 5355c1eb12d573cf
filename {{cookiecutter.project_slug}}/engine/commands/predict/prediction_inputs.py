"""What `predict` may look at instead of the test part: image files, or the rows of a file, read by the dataset."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from engine.errors import UsageError


def named(data: Any, images: str | None, rows: str | None) -> Dataset[Any] | None:
    """What --images or --rows name; None where neither is given.

    Raises: UsageError: both are.
    """
    if images is not None and rows is not None:
        raise UsageError("--images and --rows are two commands")
    return Images(Path(images), opener(data)) if images is not None else Rows(data, rows) if rows is not None else None


class Images(Dataset[Any]):
    """The image files below a folder, by path, or one file; an item is (image, whether it could be read).

    Raises: UsageError: there is none that can be read.
    """

    def __init__(self, folder: Path, open_image: Callable[[str], Tensor]) -> None:
        from PIL import Image

        Image.init()
        files = [folder] if folder.is_file() else folder.rglob("*")
        some = (path for path in files if path.suffix.lower() in Image.EXTENSION and path.is_file())
        self.ids, self.open_image = sorted(str(path) for path in some if path.name[0] != "."), open_image
        # What PIL raises for a file that is broken; anything else is a mistake in open_image.
        self.broken = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
        if not folder.exists():
            raise UsageError(f"--images {folder}: there is no such folder or file")
        if not self.ids:
            raise UsageError(f"--images {folder}: there is no image file below it")
        read = (image for index in range(len(self)) if (image := self._read(index)) is not None)
        self.blank = next(read, torch.empty(0)).clone().zero_()  # stands for one that cannot be read
        if not self.blank.numel():
            said = f"none of its {len(self)} image files can be read"
            raise UsageError(f"--images {folder}: {said}, as {self.why(0)}")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, bool]:
        image = self._read(index)
        return (self.blank, False) if image is None else (image, True)

    @staticmethod
    def collate_fn(items: list[Any]) -> Any:
        """A batch, of images of one size."""
        if len({image.shape for image, _ in items}) > 1:
            raise UsageError("--images: they are of different sizes, so each is a batch: --batch_size 1")
        return default_collate(items)

    def why(self, index: int) -> str:
        """Which file cannot be read, and why."""
        path = self.ids[index]
        try:
            self.open_image(path)
        except self.broken as error:
            return str(error) if path in str(error) else f"{path} ({error})"
        return path

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
        read = data.attribute("open_rows")
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
    own = data.attribute("open_image")
    load, transform = data.attribute("loader"), data.attribute("transform")
    if own is None and not (load and transform):
        what = "open_image(path), a static method that makes of an image file what the network takes"
        raise UsageError(f"--images: {data.dataset_class.__name__} has no {what}")
    return own or (lambda path: transform(load(path)))
