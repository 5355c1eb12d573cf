"""Digits: 1,797 images of handwritten digits that come with scikit-learn. Nothing is downloaded."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class Digits(Dataset):
    """8x8 greyscale images of the digits 0 to 9, in memory.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test set).
    """

    num_classes = 10
    in_channels = 1
    img_size = 8
    num_features = 64  # 8 * 8
    # input = (pixel - mean) / std, pixel from 0 (paper) to `white` (ink); a picture with a light edge is inverted first
    preprocessing: dict[str, Any] = {"channels": "grey", "size": 8, "resize": "box", "ink": "light"}
    preprocessing |= {"white": 16, "mean": 4.88, "std": 6.02}

    def __init__(self) -> None:
        if (sklearn := find_spec("sklearn")) is None:
            raise ModuleNotFoundError("Digits needs scikit-learn", name="sklearn")
        # What load_digits() reads, without the second and a half in which sklearn.datasets is imported.
        file = Path(str(sklearn.origin)).with_name("datasets") / "data" / "digits.csv.gz"
        rows = torch.from_numpy(np.loadtxt(file, np.float32, delimiter=","))  # (N, 65): pixels 0..16, and the digit
        self.images = _normalise(rows[:, :64]).view(-1, 1, 8, 8)  # about mean 0 and standard deviation 1
        self.targets = rows[:, 64].long()  # (N,)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch: images (B, 1, 8, 8), targets (B,); many times as fast as item by item."""
        index = torch.as_tensor(indices)
        return self.images.index_select(0, index), self.targets[index]

    @staticmethod
    def open_image(path: str) -> torch.Tensor:
        """The input (1, 8, 8) from an image file of any size: one digit that fills it, on a plain background."""
        from PIL import Image, ImageOps

        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image).convert("L").resize((8, 8), Image.Resampling.BOX)
        pixels = np.asarray(small, np.float32)
        if np.median([*pixels[[0, -1]], *pixels.T[[0, -1]]]) > 127.5:  # dark on light
            pixels = 255 - pixels
        return _normalise(torch.from_numpy(pixels / 255 * Digits.preprocessing["white"]))[None]


def _normalise(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.sub(Digits.preprocessing["mean"]).div(Digits.preprocessing["std"])
