"""MNIST: 70,000 handwritten digits, downloaded by torchvision and checked before use."""

import math
import socket
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

_TIMEOUT = 30  # seconds that a silent server may keep us waiting
# CRC-32 of each published file; a file of another size (a subset made for a test, say) is checked by its header alone.
_FILES = {
    "train-images-idx3-ubyte": (47_040_016, 0xE9F4D8B3),
    "train-labels-idx1-ubyte": (60_008, 0xE0CB4AD2),
    "t10k-images-idx3-ubyte": (7_840_016, 0x91373BDF),
    "t10k-labels-idx1-ubyte": (10_008, 0x4AB9EFF9),
}


class MNIST(Dataset):
    """28x28 grey images of the digits 0 to 9, held in memory.

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998.
    """

    num_classes = 10
    in_channels = 1
    img_size = 28
    # input = (pixel - mean) / std, pixel from 0 (paper) to `white` (ink)
    preprocessing: dict[str, Any] = {"channels": "grey", "size": 28, "white": 255, "mean": 33.3, "std": 78.6}

    def __init__(self, train: bool = True, data_dir: str = "datasets") -> None:
        """Reads the raw files.

        Args:
            train: the 60,000 images to learn from; otherwise the 10,000 of the test set.
            data_dir: folder with the raw files in MNIST/raw; what is missing there is downloaded.

        Raises:
            RuntimeError: a file is missing or broken.
        """
        folder, part = Path(data_dir, "MNIST", "raw"), "train" if train else "t10k"
        for name in _FILES:
            if name.startswith(part) and (wrong := _wrong(folder / name)):
                raise RuntimeError(_way_out(folder, f"{name} {wrong}"))
        self.images = torch.from_numpy(_read(folder / f"{part}-images-idx3-ubyte")).unsqueeze(
            1
        )  # (N, 1, 28, 28), bytes
        self.targets = torch.from_numpy(_read(folder / f"{part}-labels-idx1-ubyte")).long()  # (N,)
        if len(self.images) != len(self.targets) or (len(self.targets) and self.targets.max() > 9):
            wrong = f"{len(self.images)} images and {len(self.targets)} labels up to {self.targets.max()}"
            raise RuntimeError(_way_out(folder, f"the {part} files do not belong together: {wrong}"))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = self.__getitems__([index])
        return images[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch at once; pixels have about mean 0 and standard deviation 1 over the training set."""
        where = torch.as_tensor(indices)
        images = self.images.index_select(0, where)  # twice as fast as self.images[where]
        return _normalise(images), self.targets[where]

    @staticmethod
    def open_image(path: str) -> torch.Tensor:
        """(1, 28, 28) of an image file of any size: one digit, light on dark, with a margin of a seventh."""
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.array(image.convert("L").resize((28, 28), Image.Resampling.BILINEAR))
        return _normalise(torch.from_numpy(pixels))[None]

    @staticmethod
    def prepare_data(data_dir: str = "datasets") -> None:
        """Downloads what is missing or broken.

        Raises:
            RuntimeError: that failed; the message names the folder, what is wrong, and the ways out.
        """
        folder = Path(data_dir, "MNIST", "raw")
        wrongs = {name: wrong for name in _FILES if (wrong := _wrong(folder / name, thorough=True))}
        if not wrongs:
            return
        for name in wrongs:  # put aside, or torchvision would keep it
            if (folder / name).exists():
                (folder / name).replace(folder / f"{name}.broken")
        from torchvision.datasets import MNIST as Download

        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT)
        try:
            Download(data_dir, download=True)
        except (RuntimeError, OSError) as error:
            for name in wrongs:
                if (folder / f"{name}.broken").exists() and not (folder / name).exists():
                    (folder / f"{name}.broken").replace(folder / name)
            what = ", ".join(f"{name} {wrong}" for name, wrong in wrongs.items())
            why = " ".join(str(error).split())
            raise RuntimeError(_way_out(folder, f"{what}; the download failed ({why})")) from None
        finally:
            socket.setdefaulttimeout(before)
        for name in wrongs:
            (folder / f"{name}.broken").unlink(missing_ok=True)


def _normalise(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.sub(MNIST.preprocessing["mean"]).div_(MNIST.preprocessing["std"])


def _wrong(path: Path, thorough: bool = False) -> str:
    """What is wrong with a raw file, or "". `thorough` reads all of it."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:3] != b"\0\0\x08" or head[3] not in (1, 3):
            return "is empty" if not size else "is no IDX file"
        shape = np.frombuffer(file.read(4 * head[3]), ">i4")
    if len(shape) < head[3] or size < 4 + shape.nbytes + math.prod(shape.tolist()):
        return f"is cut short ({size} bytes)"
    known_size, known_sum = _FILES[path.name]
    if size > 4 + shape.nbytes + math.prod(shape.tolist()):
        return f"is too long ({size} bytes)"
    if thorough and size == known_size and zlib.crc32(path.read_bytes()) != known_sum:
        return "is garbled (wrong checksum)"
    return ""


def _read(path: Path) -> np.ndarray:
    """The numbers of an IDX file: two zeros, type 8 (bytes), number of dimensions, each in 4 bytes, then the data."""
    raw = np.fromfile(path, np.uint8)
    shape = raw[4 : 4 + 4 * raw[3]].view(">i4")
    return raw[4 + shape.nbytes :].reshape(shape)


def _way_out(folder: Path, what: str) -> str:
    return (
        f"MNIST in {folder}: {what}. Ways out: delete that folder and run again with a connection; "
        f"or put the four files {', '.join(_FILES)} there; or take --dataset digits, which needs no download"
    )
