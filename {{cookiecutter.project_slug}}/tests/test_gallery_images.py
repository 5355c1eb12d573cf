"""The images of the gallery: files on disk, in folders or in pairs, and the networks that see them."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write(path: Path, pixels: np.ndarray) -> None:
    """An image file of pixels (H, W) or (H, W, 3), 0..255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_digits(folder: Path, many: int = 400, size: int = 16, ending: str = "png") -> Path:
    """Handwritten digits in a folder for each."""
    digits = load_digits()
    for number, (image, target) in enumerate(zip(digits.images[:many], digits.target, strict=False)):
        pixels = Image.fromarray((image * 15.9).astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)
        write(folder / f"digit {target}" / f"{number:04}.{ending}", np.asarray(pixels))
    return folder


def write_shapes(folder: Path, many: int = 60, size: int = 32) -> Path:
    """Discs and squares on noise, in folders `images` and `masks`: 0 is nothing, 1 a disc, 2 a square."""
    draw = np.random.default_rng(0)
    down, across = np.mgrid[:size, :size]
    for number in range(many):
        mask, image = np.zeros((size, size)), draw.normal(90, 25, (size, size, 3))
        for kind in (1, 2):
            y, x, radius = *draw.integers(6, size - 6, 2), draw.integers(3, 7)
            distance = np.hypot(down - y, across - x) if kind == 1 else np.maximum(abs(down - y), abs(across - x))
            mask[distance <= radius] = kind
            image[distance <= radius] += draw.normal(60, 5, 3)
        write(folder / "images" / f"{number:03}.jpg", image.clip(0, 255))
        write(folder / "masks" / f"{number:03}.png", mask)
    return folder
