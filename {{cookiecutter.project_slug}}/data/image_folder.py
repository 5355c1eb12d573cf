"""ImageFolder: one folder of photographs per class, cropped and flipped at random in training."""

import os
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import make_dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from data._images import check_split_folders, is_image, read, read_cached, say_left_out
from engine.checkpointing.atomic_write import read_json, write_json
from engine.datamodule.class_balance import look_alike
from engine.datamodule.splits import hash_files, hash_texts, split_indices
from engine.errors import FileError, UsageError

_MOST = 10_000  # images that mean and standard deviation are taken of: further ones change nothing


class ImageFolder(Dataset):
    """Images (C, S, S) of about mean 0 and standard deviation 1, and their classes, which are the folders' names.

    The files lie in data_dir/train/CLASS, data_dir/val/CLASS and data_dir/test/CLASS. Where there is no folder `val` or
    `test` (or no `train` either: data_dir/CLASS), `val_fraction` and `test_fraction` are cut from the others. It makes
    its splits itself, since only training images are cropped and flipped at random.
    """

    def __init__(
        self,
        split: str,
        data_dir: str = "datasets",
        img_size: int = 224,
        grey: bool = False,
        cache_dir: str | None = None,
        crop_scale: float = 0.5,
        flip: bool = True,
        normalise: Literal["train", "imagenet"] = "train",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        stratify: bool = True,
        seed: int = 0,
    ) -> None:
        """Lists the files; each is opened when it is needed.

        Args:
            split: "train", "val" or "test".
            data_dir: folder with the images.
            img_size: height and width of an item, S.
            grey: one channel instead of three.
            cache_dir: folder on a fast disk in which the decoded pixels are kept, to be read instead of the files from
                the second epoch on: three bytes a pixel, some ten times what a JPEG takes.
            crop_scale: least share of an image that a random crop keeps, 1 for nearly all of it.
            flip: mirror half of the training images; not for digits and letters.
            normalise: subtract the mean and divide by the standard deviation of the training images, computed once and
                kept in data_dir/mean_std.json, or of ImageNet, as pretrained weights expect.
            val_fraction: share of the items for validation, where there is no folder `val`.
            test_fraction: share of the items for the test, where there is no folder `test`.
            stratify: cut the same share of every class.
            seed: the splits follow from it.

        Raises:
            UsageError: there is no class, or no image of one, or a class that is not learnt; a size is out of range.
            FileError: a file is no image, or is broken (also when it is fetched).
        """
        if img_size < 1 or not 0 < crop_scale <= 1:
            said = f"--img_size {img_size} --crop_scale {crop_scale}"
            raise UsageError(f"{said}: the first should be at least 1, and the second a share above 0, up to 1")
        root = Path(data_dir)
        pool = root / "train" if (root / "train").is_dir() else root
        self.classes, self.in_channels, self.img_size = _classes(pool), 1 if grey else 3, img_size
        check_split_folders(root)
        self.num_features, self.cache_dir = self.in_channels * img_size**2, cache_dir
        others = list[str]()
        splits = {
            name: _samples(root / name, self.classes, others) for name in ("val", "test") if (root / name).is_dir()
        }
        left = _samples(pool, self.classes, others)
        if split == "train":  # once, though each split lists them
            say_left_out(root, others)
        seen = {number for _, number in left}
        if empty := [name for number, name in enumerate(self.classes) if number not in seen]:
            raise UsageError(f"{pool / empty[0]} has no image: each folder in {pool} is a class. Take it away")
        val, test = 0.0 if "val" in splits else val_fraction, 0.0 if "test" in splits else test_fraction
        found = split_indices(len(left), seed, val, test, [number for _, number in left] if stratify else None)
        splits = {name: [left[place] for place in sorted(found[name].tolist())] for name in found} | splits
        self.paths, self.targets = [path for path, _ in splits[split]], [number for _, number in splits[split]]
        if normalise == "imagenet":
            mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
            mean, std = ([sum(mean) / 3], [sum(std) / 3]) if grey else (mean, std)
        else:
            training = [path for path, _ in splits["train"]]
            mean, std = self._statistics(root / "mean_std.json", training, split)
        # input = (pixel - mean) / std, pixel from 0 (black) to `white`, after the short side was made `size` long
        self.preprocessing: dict[str, Any] = {"channels": "grey" if grey else "rgb", "size": img_size, "white": 1}
        self.preprocessing |= {"resize": "bilinear", "cut": "centre", "mean": mean, "std": std}
        self.crop = v2.RandomResizedCrop(img_size, (crop_scale, 1.0)) if split == "train" else None
        self.flip_share = 0.5 if flip else 0.0

    @classmethod
    def from_record(cls, record: dict[str, Any], **_: Any) -> "ImageFolder":
        """A dataset without images, as a run kept it: for `open_image`."""
        dataset = cls.__new__(cls)
        dataset.classes, dataset.preprocessing = record["classes"], record["preprocessing"]
        dataset.img_size = record["preprocessing"]["size"]
        dataset.in_channels = 1 if record["preprocessing"]["channels"] == "grey" else 3
        dataset.num_features = dataset.in_channels * dataset.img_size**2
        return dataset

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._read(self.paths[index])
        if self.crop is None:
            return self._normalise(_middle(image, self.img_size)), self.targets[index]
        # What RandomResizedCrop and RandomHorizontalFlip do, with the same draws, in less time.
        box = self.crop.make_params([image])
        image = functional.resized_crop(image, **box, size=[self.img_size] * 2, antialias=True)
        if torch.rand(1) < self.flip_share:
            image = functional.horizontal_flip(image)
        return self._normalise(image), self.targets[index]

    def _read(self, path: str) -> Any:
        return read_cached(path, self.in_channels, self.cache_dir)

    def open_image(self, path: str) -> Tensor:
        """(C, S, S) of an image file, as in validation."""
        return self._normalise(_middle(read(path, self.in_channels), self.img_size))

    def _normalise(self, image: Image | Tensor) -> Tensor:
        mean, std = (torch.tensor(self.preprocessing[name]).view(-1, 1, 1) for name in ("mean", "std"))
        return _pixels(image).sub_(mean).div_(std)

    def _statistics(self, kept: Path, paths: list[str], split: str) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, image after image, or as they were kept."""
        known = read_json(kept, {})
        some = paths[:: 1 + len(paths) // _MOST]
        names = [Path(path).relative_to(kept.parent).as_posix() for path in some]
        which = hash_texts([*names, hash_files(some)])
        name = f"{self.in_channels} channels, size {self.img_size}, files {which}"  # of other files they are others
        if name not in known:
            total, squares = torch.zeros(2, self.in_channels, dtype=torch.float64)
            broken = list[FileError]()
            for path in some:
                try:
                    pixels = _pixels(_middle(self._read(path), self.img_size)).double()  # (C, S, S)
                except FileError as error:
                    broken.append(error)  # raised once more when it is fetched
                    continue
                total, squares = total + pixels.mean((1, 2)), squares + pixels.square().mean((1, 2))
            if len(broken) == len(some):
                raise broken[0]
            if broken and split == "train":  # once, though each split reads them
                said = f"{len(broken)} of {len(some)} training images cannot be read"
                rank_zero_only(print)(f"{said}, and will end a run: {broken[0]}", file=sys.stderr)
            mean = total / (number := len(some) - len(broken))
            std = (squares / number - mean.square()).clamp_min(1e-8).sqrt()
            known[name] = {"mean": mean.tolist(), "std": std.tolist()}
            if os.access(kept.parent, os.W_OK) and not broken:  # or each split computes them again
                write_json(kept, known)
        return known[name]["mean"], known[name]["std"]


def _middle(image: Image | Tensor, size: int) -> Image | Tensor:
    return functional.center_crop(functional.resize(image, [size], antialias=True), [size])


def _pixels(image: Image | Tensor) -> Tensor:
    """An image as numbers from 0 to 1, (C, S, S)."""
    return functional.to_dtype(functional.to_image(image).contiguous(), torch.float32, scale=True).as_subclass(Tensor)


def _classes(folder: Path) -> list[str]:
    """The folders in a folder, by name, without those of other splits."""
    inside = folder.iterdir() if folder.is_dir() else ()
    names = [one.name for one in inside if one.is_dir() and one.name[0] != "." and one.name not in ("val", "test")]
    if not names:
        raise UsageError(f"{folder} should have a folder of images for each class; see --data_dir")
    if alike := look_alike(sorted(names)):
        raise UsageError(f"{folder} has the folders {alike}, which look alike: put their images into one")
    return sorted(names)


def _samples(folder: Path, classes: list[str], others: list[str]) -> list[tuple[str, int]]:
    """The image files below a folder, with their class index. Further files are added to `others`."""
    if new := [name for name in _classes(folder) if name not in classes]:
        raise UsageError(f"{folder / new[0]}: the training images have no class {new[0]!r}, but {', '.join(classes)}")
    numbers = {name: number for number, name in enumerate(classes) if (folder / name).is_dir()}
    found = make_dataset(str(folder), numbers, is_valid_file=lambda path: True, allow_empty=True)
    samples = [sample for sample in found if is_image(sample[0])]
    others += [path for path, _ in found if not is_image(path)] if len(samples) < len(found) else []
    if not samples:
        raise UsageError(f"{folder} has no image in the folders of its classes, {', '.join(numbers)}")
    return samples
