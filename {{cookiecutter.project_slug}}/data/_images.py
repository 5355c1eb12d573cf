"""Reads image files: turned as their EXIF tag says, and 16-bit grey with all of its levels."""

import functools
import hashlib
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from engine.errors import FileError, UsageError


def is_image(path: str | Path) -> bool:
    """Whether a file has the extension of an image and is not hidden."""
    return Path(path).suffix.lower() in IMG_EXTENSIONS and not Path(path).name.startswith(".")


def check_split_folders(root: Path) -> None:
    """Raises UsageError: a folder in `root` has the name of a split, but not train, val or test.

    Without any of these three, such a folder of images alone is a class: `Train` beside `Car`.
    """
    words, splits = ("train", "training", "val", "valid", "validation", "test", "testing"), {"train", "val", "test"}
    folders = sorted(one for one in root.iterdir() if one.is_dir())
    has_splits = any(one.name in splits for one in folders)
    for folder in (one for one in folders if one.name.casefold() in words and one.name not in splits):
        if has_splits or any(one.is_dir() for one in folder.iterdir()):
            raise UsageError(f"{folder} would be no split: call the folders train, val and test")


@rank_zero_only
def say_left_out(folder: Path, paths: Iterable[str | Path]) -> None:
    """Prints which of the files below a folder are no images by their extension, such as .gif and .heic."""
    endings = [Path(path).suffix for path in paths if not (is_image(path) or Path(path).name.startswith("."))]
    if endings := [one for one in endings if one]:
        said = f"{len(endings)} files ({', '.join(sorted({*endings}))}) are left out"
        print(f"{folder}: {said}; images are {', '.join(IMG_EXTENSIONS)}", file=sys.stderr)


def read(path: str | Path, channels: int) -> Image.Image | Tensor:
    """An image of 1 or 3 channels: PIL's, of bytes; of a file of 16 bits a grey level, floats (channels, H, W) in 0..1.

    Raises: FileError: the file is no image, or is broken, or has levels whose range it does not say.
    """
    with _opened(path) as image:
        if image.mode in ("I", "F"):
            raise ValueError(f"image mode {image.mode} is not supported: save it with 8 or 16 bits per channel")
        if image.mode.startswith("I;16"):
            grey = torch.from_numpy(np.array(image).astype(np.float32) / 65535)  # (H, W)
            return grey.expand(channels, -1, -1)
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("L" if channels == 1 else "RGB")


def read_cached(path: str | Path, channels: int, cache_dir: str | None) -> Image.Image | Tensor:
    """As `read`, from a file of its pixels in cache_dir once there is one; a changed image has another.

    Such a file is height and width, four bytes each, and the rows of bytes.
    """
    if cache_dir is None:
        return read(path, channels)
    about = os.stat(path)
    key = repr((os.path.abspath(path), about.st_size, about.st_mtime_ns, channels))
    name = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    kept, mode = Path(cache_dir, name[:2], f"{name[2:]}.pixels"), "L" if channels == 1 else "RGB"
    with suppress(OSError, ValueError, struct.error):  # it is not there, or was cut off
        content = kept.read_bytes()
        height, width = struct.unpack_from("<II", content)
        return Image.frombytes(mode, (width, height), memoryview(content)[8:])
    image = read(path, channels)
    if isinstance(image, Image.Image):
        part = kept.with_suffix(f".{os.getpid()}.part")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(struct.pack("<II", image.height, image.width) + image.tobytes())
            part.replace(kept)
        except OSError as error:
            with suppress(OSError):  # what a full disk has taken of it
                part.unlink(missing_ok=True)
            _say_once(f"--cache_dir {cache_dir}: {error.strerror}: images are decoded anew each time")
    return image


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def numbers(path: str | Path) -> Tensor:
    """The raw values of a mask file, (H, W), or (H, W, channels) for one in colour.

    Raises: FileError: the file is no image, or is broken.
    """
    with _opened(path) as image:
        return torch.from_numpy(np.array(image).astype(np.int64))


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The image of a file, rotated by its EXIF orientation."""
    try:
        with Image.open(path) as image:
            if getattr(image, "is_animated", False) and image.format != "MPO":  # a photograph and its preview
                _say_once(f"of {Path(path).suffix} files with several pages or frames the first one is read")
            yield ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL raises for these
        raise FileError(f"{path} is no image, or is broken ({error}): mend it or take it away") from None
