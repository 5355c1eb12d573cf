"""PairedImages: an image in and an image or a mask out, for super-resolution, denoising and segmentation."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from data._images import check_split_folders, is_image, numbers, read, say_left_out
from engine.datamodule.splits import hash_files, split_indices
from engine.errors import FileError, UsageError


class PairedImages(Dataset):
    """Inputs (C, S/scale, S/scale) in 0..1, and what should come out: images (C, S, S) in 0..1 or class numbers (S, S).

    The files lie in data_dir/train/images, data_dir/val/images and data_dir/test/images, and targets of the same names
    (whatever the ending) in the folder beside `images` that `target_folder` names. Where there is no folder `val` or
    `test` (or no `train` either: data_dir/images), `val_fraction` and `test_fraction` are cut from the others.

    Super-resolution: `--scale 2`. Denoising: `--noise 0.1`. From image to image: `--target_folder sharp`.
    Segmentation: `--target_folder masks --classes background cat dog`; a pixel of a mask is 0, 1 or 2, or what
    `--mask_values` says, such as 0 255. With `--ignore_index 255` a pixel of 255 does not count: it comes as -100.
    """

    def __init__(
        self,
        split: str,
        data_dir: str = "datasets",
        target_folder: str | None = None,
        classes: list[str] | None = None,
        mask_values: tuple[int, ...] = (),
        ignore_index: int | None = None,
        scale: int = 1,
        noise: float = 0.0,
        img_size: int = 128,
        grey: bool = False,
        flip: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        """Lists the files; each is opened when it is needed.

        Args:
            split: "train", "val" or "test".
            data_dir: folder with the folders of images.
            target_folder: name of the folders of targets; none makes the input of the image itself.
            classes: names of the classes, where the targets are masks of class numbers.
            mask_values: the number of each class in a mask; none are 0, 1, 2 ...
            ignore_index: the number in a mask of pixels that count neither in the loss nor in a metric.
            scale: how many times smaller the input is made than the target.
            noise: standard deviation of the noise that the input gets, whose pixels are 0..1.
            img_size: side of the square that is cut out, S: anywhere in training, else from the middle.
            grey: one channel instead of three.
            flip: mirror half of the training pairs.
            val_fraction: share of the items for validation, where there is no folder `val`.
            test_fraction: share of the items for the test, where there is no folder `test`.
            seed: the splits follow from it.

        Raises:
            UsageError: there is no image, or an image has no target; the flags do not go together.
            FileError: an item is fetched, and a file is broken, too small or of another size than its target, or a
                mask has a number that is no class.
        """
        if min(img_size, scale) < 1 or img_size % scale:
            raise UsageError(f"--img_size {img_size} should be a multiple of --scale {scale}, both at least 1")
        if classes and (scale > 1 or not target_folder):
            raise UsageError("--classes goes with masks in a --target_folder, and with --scale 1")
        many, ignored = len(classes or ()), [] if ignore_index is None else [ignore_index]
        self.mask_values = [*(mask_values or range(many)), *ignored]
        if len({one for one in self.mask_values if one >= 0}) != many + len(ignored):
            said = f"--mask_values {' '.join(map(str, mask_values))} --ignore_index {ignore_index}"
            raise UsageError(f"{said}: each of the {many} --classes has a number of its own, 0 or above")
        self._classes_of = torch.full((max(self.mask_values, default=0) + 2,), -1)  # of a mask's number; -1: none
        self._classes_of[self.mask_values] = torch.tensor([*range(many), *(-100 for _ in ignored)], dtype=torch.long)
        self.scale, self.noise, self.img_size, self.in_channels = scale, noise, img_size, 1 if grey else 3
        self.out_channels = len(classes) if classes else self.in_channels
        self.masks = bool(classes)
        if classes:  # a dataset without classes should not have them as an attribute
            self.classes = classes
        root, names = Path(data_dir), ("images", target_folder or "images")
        others = set[Path]()
        pool = _pairs(root / "train" if (root / "train").is_dir() else root, *names, others)
        splits = {name: _pairs(root / name, *names, others) for name in ("val", "test") if (root / name).is_dir()}
        check_split_folders(root)
        val, test = 0.0 if "val" in splits else val_fraction, 0.0 if "test" in splits else test_fraction
        found = split_indices(len(pool), seed, val, test)
        splits = {name: [pool[place] for place in sorted(found[name].tolist())] for name in found} | splits
        if split == "train":  # once, though each split lists them
            say_left_out(root, others)
        self.pairs = splits[split]
        self.paths = [str(path) for path, _ in self.pairs]
        self.fingerprint = hash_files([beside for _, beside in self.pairs])
        drawn = [v2.RandomCrop(img_size), v2.RandomHorizontalFlip(0.5 if flip else 0.0)]
        self.cut = v2.Compose(drawn if split == "train" else [v2.CenterCrop(img_size)])
        # input = pixel / 255, at `scale` times less than the size of what comes out
        self.preprocessing: dict[str, Any] = {"channels": "grey" if grey else "rgb", "white": 1, "scale": scale}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, beside = self.pairs[index]
        image = target = self._image(path, self.img_size)  # (C, H, W)
        if beside != path:
            target = self._mask(beside) if self.masks else self._image(beside, self.img_size)  # (H, W) or (C, H, W)
        if image.shape[-2:] != target.shape[-2:]:
            height, width = target.shape[-2:]
            raise FileError(f"{path} is {image.shape[-1]}x{image.shape[-2]}, and {beside} is {width}x{height}")
        image, target = self.cut(image, target)  # both at the same place: (C, S, S); (S, S) or (C, S, S)
        image, target = image.as_subclass(Tensor), target.as_subclass(Tensor)
        if self.scale > 1:
            size = self.img_size // self.scale
            image = functional.interpolate(image[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
        return (image + self.noise * torch.randn_like(image) if self.noise else image), target

    def open_image(self, path: str) -> Tensor:
        """(C, H, W) of an image file, which is taken as an input as it is, the whole of it."""
        return self._image(Path(path)).as_subclass(Tensor)

    def _image(self, path: Path, least: int = 1) -> Tensor:
        pixels = v2.functional.to_dtype(v2.functional.to_image(read(path, self.in_channels)), torch.float32, scale=True)
        if min(pixels.shape[1:]) < least:
            height, width = pixels.shape[1:]
            raise FileError(f"{path} is {width}x{height}, less than {least}x{least}: see --img_size")
        return tv_tensors.Image(pixels)  # (C, H, W)

    def _mask(self, path: Path) -> Tensor:
        found = numbers(path)
        classes = self._classes_of[found.clamp(-1, len(self._classes_of) - 1)]
        if found.dim() != 2 or (classes == -1).any():
            what = "colours" if found.dim() != 2 else f"the number {int(found[classes == -1][0])}"
            known = ", ".join(map(str, self.mask_values))
            raise FileError(f"{path} has {what}: a mask has one of {known} a pixel; see --mask_values, --ignore_index")
        return tv_tensors.Mask(classes)


def _pairs(folder: Path, images: str, targets: str, others: set[Path]) -> list[tuple[Path, Path]]:
    """The image files below a folder, each with the file of its target. Files that are no images go into `others`."""
    listed = {name: sorted((folder / name).rglob("*")) for name in (images, targets)}
    found = {
        name: {path.relative_to(folder / name).with_suffix(""): path for path in paths if is_image(path)}
        for name, paths in listed.items()
    }
    others.update(path for paths in listed.values() for path in paths if not is_image(path) and path.is_file())
    for name, paths in listed.items():
        for path in filter(is_image, paths):
            if (other := found[name][path.relative_to(folder / name).with_suffix("")]) != path:
                raise UsageError(f"{path} and {other} have one name: which of them belongs to a pair?")
    if not found[images]:
        raise UsageError(f"{folder / images} has no image; see --data_dir")
    if alone := [path for key, path in found[images].items() if key not in found[targets]]:
        raise UsageError(f"{alone[0]} has no file of the same name in {folder / targets} ({len(alone)} in all)")
    return [(path, found[targets][key]) for key, path in found[images].items()]
