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
    """A disc or a square on noise, in folders `images` and `masks`: 0 is nothing, 1 a disc, 2 a square."""
    draw = np.random.default_rng(0)
    down, across = np.mgrid[:size, :size]
    for number in range(many):
        kind, radius, (y, x) = 1 + number % 2, draw.integers(5, 9), draw.integers(8, size - 8, 2)
        far = np.hypot(down - y, across - x) if kind == 1 else np.maximum(abs(down - y), abs(across - x))
        image = draw.normal(90, 12, (size, size, 3)) + draw.normal(60, 8, 3) * (far <= radius)[..., None]
        write(folder / "images" / f"{number:03}.png", image.clip(0, 255))
        write(folder / "masks" / f"{number:03}.png", kind * (far <= radius))
    return folder
