"""JPEG files through the project's loader over a DataLoader tuned by hand: images a second.

python benchmarks/images.py PROJECT [ROUNDS]
"""

import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from turns import arguments_of, in_turn, measure, over

CLASSES, EACH, SIDE, SIDE_CUT, BATCH = 10, 200, 256, 128, 64
WAYS = {"project": "the same dataset", "cache": "`image_folder` with `--cache_dir`, from the second epoch on"}


def write_images(folder: Path) -> None:
    """Smooth noise, as JPEG files in a folder a class."""
    from PIL import Image

    source = torch.Generator().manual_seed(0)
    for label in range(CLASSES):
        (folder / str(label)).mkdir()
        for number in range(EACH):
            rough = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=source)
            picture = Image.fromarray(rough.numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            picture.save(folder / str(label) / f"{number}.jpg", quality=90)


class Images(ImageFolder):
    """A folder of images, cut and turned at random."""

    def __init__(self, data_dir: str) -> None:
        self.num_classes = CLASSES
        cut = [v2.ToImage(), v2.RandomResizedCrop(SIDE_CUT, (0.5, 1.0)), v2.RandomHorizontalFlip()]
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
        super().__init__(data_dir, v2.Compose(cut + scale))


def one_thread(worker: int) -> None:
    """A worker does not share its core with itself."""
    torch.set_num_threads(1)


def loader(way: str, data: Dataset, folder: str, workers: int):
    """What gives the batches of an epoch."""
    if way != "hand":
        from data import DInterface
        from data.image_folder import ImageFolder as Cached
        from engine.lightning_compat import keep_freed_memory

        keep_freed_memory()  # as main.py does
        options: dict = {"data_dir": folder, "val_fraction": 0, "test_fraction": 0}
        if way == "cache":
            own = options | {"img_size": SIDE_CUT, "cache_dir": f"{folder}.cache"}
            interface = DInterface(Cached, own, batch_size=BATCH, num_workers=workers)
        else:
            interface = DInterface(Images, batch_size=BATCH, num_workers=workers, **options)
        return interface.train_dataloader()
    return DataLoader(
        data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, worker_init_fn=one_thread
    )


def once(way: str, folder: str, workers: int) -> float:
    """Images a second in an epoch, after one that fills the caches and starts the workers."""
    torch.set_num_threads(1)
    batches = loader(way, Images(folder), folder, workers)
    for _ in range(2):
        began = time.perf_counter()
        images = sum(len(targets) for _, targets in batches)
    return images / (time.perf_counter() - began)


def images_a_second(project: Path, *arguments: object) -> float:
    """The same, in a process of its own."""
    return measure("images.py", project, *arguments)[0]


def main() -> None:
    """The command line."""
    arguments, _ = arguments_of(__doc__)
    if arguments.once:
        way, folder, workers = arguments.once
        print("NUMBERS", once(way, folder, int(workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        print("| workers | | images a second by hand | project over it, median | range |\n" + "| --- " * 5 + "|")
        for workers in (0, 2):
            ways = {way: partial(images_a_second, arguments.project, way, folder, workers) for way in ("hand", *WAYS)}
            found = in_turn(arguments.rounds, ways)
            hand = sorted(found["hand"])[arguments.rounds // 2]
            for way, words in WAYS.items():
                print(f"| {workers} | {words} | {hand:.0f} | {over(found[way], found['hand'])} |", flush=True)
        shutil.rmtree(f"{folder}.cache")


if __name__ == "__main__":
    main()
