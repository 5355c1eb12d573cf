"""MNIST: 70,000 handwritten digits, downloaded by torchvision and checked before use."""

import math
import socket
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

_TIMEOUT = 30  # seconds to wait for a server
# Size and CRC-32 of each published file; a file of another size (such as a small one for a test) has no checksum.
_FILES = {
    "train-images-idx3-ubyte": (47_040_016, 0xE9F4D8B3),
    "train-labels-idx1-ubyte": (60_008, 0xE0CB4AD2),
    "t10k-images-idx3-ubyte": (7_840_016, 0x91373BDF),
    "t10k-labels-idx1-ubyte": (10_008, 0x4AB9EFF9),
}


class MNIST(Dataset):
    """28x28 greyscale images of the digits 0 to 9, in memory.

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998.
    """

    num_classes = 10
    in_channels = 1
    img_size = 28
    num_features = 784  # 28 * 28
    # input = (pixel - mean) / std, pixel from 0 (paper) to `white` (ink); a picture with a light edge is inverted first
    preprocessing: dict[str, Any] = {"channels": "grey", "size": 28, "resize": "bilinear", "ink": "light"}
    preprocessing |= {"white": 255, "mean": 33.3, "std": 78.6}

    def __init__(self, train: bool = True, data_dir: str = "datasets") -> None:
        """Reads the raw files.

        Args:
            train: the 60,000 training images; otherwise the 10,000 of the test set.
            data_dir: folder with the raw files in MNIST/raw; what is missing there is downloaded.

        Raises: RuntimeError: a file is missing or broken.
        """
        folder, prefix = Path(data_dir, "MNIST", "raw"), "train" if train else "t10k"
        try:
            self.images = torch.from_numpy(_read(folder / f"{prefix}-images-idx3-ubyte")).unsqueeze(1)  # (N, 1, 28, 28)
            self.targets = torch.from_numpy(_read(folder / f"{prefix}-labels-idx1-ubyte")).long()  # (N,)
        except ValueError as error:
            raise _unusable(folder, str(error)) from None
        if len(self.images) != len(self.targets) or (len(self.targets) and self.targets.max() > 9):
            counts = f"{len(self.images)} images and {len(self.targets)} labels up to {self.targets.max()}"
            raise _unusable(folder, f"the {prefix} files do not belong together: {counts}")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = self.__getitems__([index])
        return images[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch: images (B, 1, 28, 28), of about mean 0 and standard deviation 1, and targets (B,)."""
        index = torch.as_tensor(indices)
        images = self.images.index_select(0, index)  # twice as fast as self.images[index]
        return _normalise(images), self.targets[index]

    @staticmethod
    def open_image(path: str) -> torch.Tensor:
        """The input (1, 28, 28) from an image file: one digit with a margin of a seventh, on a plain background."""
        from PIL import Image, ImageOps

        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image).convert("L").resize((28, 28), Image.Resampling.BILINEAR)
        pixels = np.array(small)
        if np.median([*pixels[[0, -1]], *pixels.T[[0, -1]]]) > 127.5:  # dark on light
            pixels = 255 - pixels
        return _normalise(torch.from_numpy(pixels))[None]

    @staticmethod
    def prepare_data(data_dir: str = "datasets") -> None:
        """Downloads what is missing or broken.

        Raises: RuntimeError: that failed; the message names the folder, the problems, and the alternatives.
        """
        folder, problems = Path(data_dir, "MNIST", "raw"), {}
        for name in _FILES:
            try:
                _read(folder / name, check_sum=True)
            except ValueError as error:
                problems[name] = str(error)
        if not problems:
            return
        from torchvision.datasets import MNIST as TorchvisionMNIST

        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT)
        try:
            with tempfile.TemporaryDirectory(dir=data_dir) as download:
                fresh = Path(TorchvisionMNIST(download, download=True).raw_folder)
                folder.mkdir(parents=True, exist_ok=True)
                for name in problems:
                    (fresh / name).replace(folder / name)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise _unusable(folder, f"{', '.join(problems.values())}; the download failed ({reason})") from None
        finally:
            socket.setdefaulttimeout(timeout)


def _normalise(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.sub(MNIST.preprocessing["mean"]).div_(MNIST.preprocessing["std"])


def _read(path: Path, check_sum: bool = False) -> np.ndarray:
    """The bytes of an IDX file: two zeros, type 8 (bytes), number of dimensions, each size in 4 bytes, the data.

    Raises: ValueError: what is wrong with the file.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    raw, dimensions = np.fromfile(path, np.uint8), 3 if "images" in path.name else 1
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4].tolist() != [0, 0, 8, dimensions]:
        raise ValueError(f"{path.name} is {'no IDX file' if len(raw) else 'empty'}")
    shape = raw[4:start].view(">i4").tolist()
    expected = start + math.prod(shape)
    if len(raw) != expected:
        raise ValueError(f"{path.name} is {'too long' if len(raw) > expected else 'cut short'} ({len(raw)} bytes)")
    size, checksum = _FILES[path.name]
    if check_sum and len(raw) == size and zlib.crc32(raw.tobytes()) != checksum:
        raise ValueError(f"{path.name} is garbled (wrong checksum)")
    return raw[start:].reshape(shape)


def _unusable(folder: Path, problem: str) -> RuntimeError:
    return RuntimeError(
        f"MNIST in {folder}: {problem}. Ways out: delete that folder and run again with a connection; "
        f"or put the four files {', '.join(_FILES)} there; or take --dataset digits, which needs no download"
    )
