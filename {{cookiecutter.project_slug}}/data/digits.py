"""Digits: 1,797 images of handwritten digits that come with scikit-learn. Nothing is downloaded."""

from typing import Any

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
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).float()  # (N, 8, 8), 0..16
        self.images = _normalise(images).unsqueeze(1)  # (N, 1, 8, 8), about mean 0 and standard deviation 1
        self.targets = torch.from_numpy(digits.target).long()  # (N,)

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
        import numpy as np
        from PIL import Image, ImageOps

        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image).convert("L").resize((8, 8), Image.Resampling.BOX)
        pixels = np.asarray(small, np.float32)
        if np.median([*pixels[[0, -1]], *pixels.T[[0, -1]]]) > 127.5:  # dark on light
            pixels = 255 - pixels
        return _normalise(torch.from_numpy(pixels / 255 * Digits.preprocessing["white"]))[None]


def _normalise(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.sub(Digits.preprocessing["mean"]).div(Digits.preprocessing["std"])
