"""`preview`: what it says of data whose faults are known, and what it draws, against a run and numbers by hand."""

import csv
import re
import shutil
import time
from html import unescape
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import ClassVar

import main
import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from toys import Blobs, Net, Stream

PAGE = Path("preview/preview.html")
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1.0]])


def preview(dataset: str, *argv: str, model: str | None = None) -> None:
    named = ["--model_name", model] if model else []
    main.main(["preview", "--dataset", dataset, *named, "--accelerator", "cpu", *argv])


def said(text: str, begins: str) -> list[str]:
    """The lines below the finding that begins so."""
    lines = text.splitlines()
    (start,) = [at for at, line in enumerate(lines) if line.startswith(f"- {begins}")]
    end = next((at for at, line in enumerate(lines) if at > start and not line.startswith("    ")), len(lines))
    return [line.strip() for line in lines[start + 1 : end]]


def row(text: str, label: str) -> list[str]:
    """The cells of a row of the table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{label}  ")]
    return re.split(r"  +", line.strip())[1:]


class Patients(Dataset):
    """A file an item, with four numbers; to learn from, noise is added."""

    classes = ["well", "ill"]
    feature_names = ["age", "weight", "site", "lost"]

    def __init__(self, split: str) -> None:
        self.paths = sorted(map(str, Path("patients", split).glob("*/*.txt")))
        self.targets = [self.classes.index(Path(path).parent.name) for path in self.paths]
        self.split = split

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        text = Path(self.paths[index]).read_text()
        numbers = torch.tensor([float(one) for one in text.split()])
        numbers[:2] += torch.randn(2) if self.split == "train" else 0.0
        return numbers, self.targets[index]


def write_patients() -> dict[str, list[str]]:
    """180 and 20 of a class in train, half of that in val; and what is wrong with them."""
    draws = np.random.default_rng(0)
    for split, counts in {"train": (180, 20), "val": (90, 10), "test": (10, 0)}.items():
        for kind, count in zip(("well", "ill"), counts, strict=True):
            Path("patients", split, kind).mkdir(parents=True)
            for at in range(count):
                age, weight = draws.integers(20, 90), draws.normal(70, 9)
                Path("patients", split, kind, f"{at:03}.txt").write_text(f"{age} {weight:.4f} 3 nan")
    faults: dict[str, list[str]] = {"broken": [], "leaks": [], "other": []}
    for at in range(10):
        path = Path(f"patients/train/well/{at * 7:03}.txt")
        path.write_text("no numbers" if at % 2 else f"nothing {at}")
        faults["broken"].append(str(path))
    for at in range(5):
        one, other = f"patients/train/well/{at * 7 + 1:03}.txt", f"patients/val/well/{at * 9:03}.txt"
        shutil.copy(one, other)
        faults["leaks"].append(f"{one} (train) = {other} (val)")
    one, other = "patients/train/ill/doubled.txt", "patients/train/well/002.txt"
    shutil.copy(other, one)
    faults["other"].append(f"{one} (train, ill) = {other} (train, well)")
    return faults


def test_what_is_wrong_is_named_on_the_screen_and_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    faults = write_patients()
    with pytest.raises(SystemExit) as ended:
        preview("test_preview.Patients")
    assert ended.value.code == 1
    printed, page = capsys.readouterr().out, unescape(PAGE.read_text())
    assert printed.splitlines()[-1] == str(PAGE)
    for text in (printed, page):
        assert [line.partition(": ValueError: ")[0] for line in said(text, "10 items cannot be read")] == faults[
            "broken"
        ]
        assert sorted(said(text, "5 items are in two splits")) == faults["leaks"]
        assert said(text, "1 item is twice, with different targets") == faults["other"]
        assert said(text, "input in the train split is NaN in every item, in 1 column") == ["lost"]
        assert said(text, "input in the train split is the same in every item, in 1 column") == ["site: 3"]
        assert said(text, "the test split has no item of 1 of the classes") == ["ill"]
        assert (
            "- 180 train items are of class well and 21 of class ill: always predicting well is right in 89.6 %" in text
        )
        assert row(text, "items") == row(text, "items read") == ["201", "100", "10"]
        assert row(text, "class ill") == ["21 (10.4 %)", "10 (10 %)", "0 (0 %)"]
        assert row(text, "cannot be read") == ["10", "0", "0"]


def test_numbers_of_the_table_are_those_of_the_items(capsys: pytest.CaptureFixture[str]) -> None:
    write_patients()
    with pytest.raises(SystemExit):
        preview("test_preview.Patients")
    printed = capsys.readouterr().out
    values = np.array([[*map(float, Path(path).read_text().split())] for path in Patients("val").paths])[:, :3]
    assert row(printed, "  mean, std")[1] == f"{values.mean():.3g}, {values.std():.3g}"
    assert row(printed, "  from, to")[1] == f"{values.min():.4g}, {values.max():.4g}"
    assert row(printed, "  NaN, infinite") == ["191, 0", "100, 0", "10, 0"]


class Twins(Dataset):
    """Items without files: the last of each further split is the first of the train split."""

    num_classes = 3

    def __init__(self, split: str, good: bool = False) -> None:
        torch.manual_seed({"train": 0, "val": 1, "test": 2}[split])
        self.values, self.targets = torch.randn(20, 2), torch.arange(20) % 3
        if split != "train" and not good:
            self.values[-1] = Twins("train").values[0]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.values[index], self.targets[index]


def test_the_same_item_in_two_splits_is_found_by_its_content(capsys: pytest.CaptureFixture[str]) -> None:
    preview("test_preview.Twins")
    (line,) = said(capsys.readouterr().out, "1 item is in two splits")
    assert line == "train item 0 (train) = val item 19 (val) = test item 19 (test)"
    preview("test_preview.Twins", "--good")
    assert "nothing stands out" in capsys.readouterr().out


def test_items_that_are_drawn_have_no_content_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    preview("toys.Blobs")
    assert "of the train and val and test split no duplicates can be found" in capsys.readouterr().out


class Tags(HTMLParser):
    """Notes what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href", "style") and value]


class Painted(Dataset):
    """Images whose right half has a colour that is drawn when they are fetched; the left one is black."""

    num_classes, in_channels, img_size = 2, 3, 8

    def __init__(self, num_items: int = 60) -> None:
        self.targets = [index % 2 for index in range(num_items)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.zeros(3, 8, 8)
        image[:, :, 4:] = COLOURS[torch.randint(6, ())][:, None, None]
        return image, self.targets[index]


class Brush(nn.Module):
    """A network for them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def colours_of(path: Path) -> list[list[int]]:
    """The colours in a picture, by rows of images."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    found = []
    for line in pixels:
        runs = [(tuple(colour), len([*run])) for colour, run in groupby(line.tolist())]
        known = [(torch.tensor(colour) / 255 == COLOURS).all(1).nonzero() for colour, length in runs if length > 9]
        found.append([int(one) for one in known if len(one)])
    return [row for row, lines in groupby(found) if row and len([*lines]) > 9]


def test_the_grid_shows_what_a_run_gets() -> None:
    batches: list[Tensor] = []
    keep = LambdaCallback(on_train_batch_start=lambda trainer, module, batch, number: batches.append(batch[0].clone()))
    flags = ["--dataset", "test_preview.Painted", "--batch_size", "16", "--seed", "3", "--accelerator", "cpu"]
    main.main(
        ["--model_name", "test_preview.Brush", *flags, "--max_epochs", "1", "--num_workers", "0"], callbacks=[keep]
    )
    preview(*flags[1:])
    drawn = colours_of(Path("preview/train_batch.png"))
    first = [int((colour == COLOURS).all(1).nonzero()) for colour in batches[0][:8, :, 0, 7]]
    assert len(drawn) == 3
    assert drawn[0] == first
    assert drawn[1] != first != drawn[2]
    assert {len(row) for row in drawn} == {8}
    tags = Tags()
    tags.feed(PAGE.read_text())
    assert len(tags.addresses) == 3
    assert all(one.startswith("data:image/png;base64,") for one in tags.addresses)


def test_the_grid_shows_what_mixup_makes_of_a_batch() -> None:
    shown = []
    for mixup in ([], ["--model_name", "test_preview.Brush", "--mixup", "1"]):
        names = ["--dataset", "test_preview.Painted", "--num_workers", "0", "--batch_size", "16"]
        main.main(["preview", *names, "--accelerator", "cpu", *mixup])
        shown.append({tuple(colour) for colour in np.asarray(Image.open("preview/train_batch.png")).reshape(-1, 3)})
    assert {len({*colour}) > 1 for colour in shown[1] - shown[0]} >= {True}  # blends of the six colours, and no grey


@pytest.mark.parametrize(
    "flags",
    [
        "--max_epochs 4 --warmup_steps 5",
        "--dataset toys.Forgetful --max_steps 9 --lr_scheduler linear --accumulate_grad_batches 2",
        "--dataset toys.Forgetful --max_epochs 4 --lr_scheduler step --lr_every 2 --lr_scale layers.0=0.5",
    ],  # of a stream, the speed of loading is not tried with several numbers of workers
)
def test_the_rates_are_those_of_a_run(train, flags: str) -> None:
    words = [*flags.split(), "--batch_size", "8"]
    train(*words, "--log_every_n_steps", "1")
    with Path("lightning_logs/version_0/metrics.csv").open() as file:
        run = {int(one["step"]): one for one in csv.DictReader(file) if one.get("lr")}
    main.main(["preview", "--model_name", "toys.Net", "--dataset", "toys.Blobs", "--accelerator", "cpu", *words])
    with Path("preview/learning_rate.csv").open() as file:
        planned = {int(one["step"]): one for one in csv.DictReader(file)}
    assert len(run) == len(planned) > 3
    for step, rates in planned.items():
        for name in rates.keys() - {"step"}:
            assert float(rates[name]) == pytest.approx(float(run[step][name]), rel=1e-6), (step, name)


class Slow(Blobs):
    """Points that come slowly."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(0.02)
        return super().__getitem__(index)


class Tired(Net):
    """A network that takes its time."""

    def forward(self, points: Tensor) -> Tensor:
        time.sleep(0.3)
        return super().forward(points)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "model", "limit"),
    [("test_preview.Slow", "toys.Net", "loading limits: it is quickest with --num_workers 4"),
     ("toys.Blobs", "test_preview.Tired", "the network limits: loading takes less than a tenth of the time")],
)  # fmt: skip
def test_which_limits_loading_or_the_network(dataset: str, model: str, limit: str, capsys) -> None:
    preview(dataset, "--batch_size", "8", "--check_seconds", "1", model=model)
    printed = capsys.readouterr().out
    assert limit in printed
    assert re.search(
        r"^loading, items/s by --num_workers: \S+ with 0, \S+ with 1, \S+ with 2, \S+ with 4$", printed, re.M
    )


class Spans(Dataset):
    """Sequences, or grids, with a class for each position: nine in ten are of the first."""

    classes = ["other", "name"]

    def __init__(self, height: int = 0) -> None:
        self.shape = (height, 10) if height else (10,)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.rand(self.shape), (torch.arange(10) == 3).long().expand(self.shape)


@pytest.mark.parametrize(("height", "of"), [("0", "288 train positions"), ("2", "576 train pixels")])
def test_what_has_a_class_is_named(height: str, of: str, capsys) -> None:
    preview("test_preview.Spans", "--height", height)
    assert f"- {of} are of class other" in capsys.readouterr().out


class Words(Dataset):
    """Texts of token ids, a number each."""

    num_classes = 2

    def __init__(self, num_items: int = 40) -> None:
        self.texts = torch.zeros(num_items, 6, dtype=torch.long)
        for at, text in enumerate(self.texts):
            text[: 1 + at % 5] = torch.arange(1, 2 + at % 5)
        self.targets = torch.arange(num_items) % 2

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.texts[index], self.targets[index]

    @staticmethod
    def decode(numbers: list[int]) -> str:
        return " ".join("one two <three> four five".split()[number - 1] for number in numbers if number)


def test_texts_are_decoded(capsys) -> None:
    preview("test_preview.Words")
    assert "1 to 5, 3" in row(capsys.readouterr().out, "  length, median")
    page = PAGE.read_text()
    assert "<td>one two &lt;three&gt; four" in page
    assert "<three>" not in page


class Scaled(Dataset):
    """Rows that are scaled."""

    num_classes = 2

    def __init__(self) -> None:
        self.sizes = torch.arange(40.0) * 3
        self.targets = torch.arange(40) % 2

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self.sizes[index, None] - 60) / 40, self.targets[index]

    def raw_items(self, indices: list[int]) -> list[dict[str, float]]:
        return [{"size": self.sizes[index].item()} for index in indices]


def test_rows_stand_beside_what_the_network_gets() -> None:
    preview("test_preview.Scaled")
    head, *rows = [[unescape(cell) for cell in re.split("<t[hd]>", row)[1:]]
                   for row in PAGE.read_text().partition("</table>")[0].split("<tr>")[1:]]  # fmt: skip
    assert head == ["raw size", "input[0]", "target"]
    assert len(rows) == 8
    for raw, given, target in rows:
        assert float(given) == pytest.approx((float(raw) - 60) / 40, abs=1e-3)
        assert int(target) == float(raw) / 3 % 2


class Kinds(Dataset):
    """Clips, masks, pairs, signals or numbers."""

    def __init__(self, shows: str = "clips") -> None:
        self.shows = shows
        if shows == "masks":
            self.classes = ["ground", "cell"]

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, number = torch.rand(3, 8, 8), torch.tensor(index / 10)
        return {
            "clips": (torch.rand(5, 3, 8, 8), number),
            "masks": (image, (image[0] > 0.5).long()),
            "pairs": (image[:, ::2, ::2], image),
            "signals": (torch.rand(2, 100), number),
        }[self.shows]


@pytest.mark.parametrize(
    ("shows", "pictures", "label", "cell"),
    [("clips", ["targets", "train_clips", "val_clips"], "input: float32 (5, 3, 8, 8)", ""),
     ("masks", ["train_masks1", "train_masks2", "train_masks3", "val_masks1", "val_masks2", "val_masks3"],
      "target: int64 (8, 8)", ""),
     ("pairs", ["train_batch", "val_batch"], "target: float32 (3, 8, 8)", ""),
     ("signals", ["targets", "train_batch", "val_batch"], "input: float32 (2, 100)", "")],
)  # fmt: skip
def test_each_kind_is_drawn_as_a_person_looks_at_it(
    shows: str, pictures: list[str], label: str, cell: str, capsys
) -> None:
    preview("test_preview.Kinds", "--shows", shows)
    drawn = sorted(path.stem for path in Path("preview").glob("*.png"))
    assert [name for name in drawn if name != "learning_rate"] == pictures
    assert label in capsys.readouterr().out


class Endless(IterableDataset):
    """A stream that has no end."""

    num_classes = 3

    def __init__(self, split: str) -> None:
        self.items = Blobs(3000)

    def __iter__(self):
        for at in range(100_000):
            yield self.items[at % 3000]


def test_of_a_stream_the_first_items_are_looked_at(capsys) -> None:
    preview("test_preview.Endless", "--lr_scheduler", "constant", "--check_seconds", "60")
    printed = capsys.readouterr().out
    assert row(printed, "items read (--check_all: all)") == ["1,000"] * 3
    assert row(printed, "class 0") == ["334 (33.4 %)"] * 3


class Kept(Stream):
    """A stream that keeps its place, of more items than are looked at."""

    begun: ClassVar[list[int]] = []

    def __init__(self, split: str) -> None:
        super().__init__(split, num_items=1500)

    def __iter__(self):
        self.begun.append(self.place)
        return super().__iter__()


def test_a_stream_that_keeps_its_place_is_put_back_there(capsys) -> None:
    Kept.begun.clear()
    preview(
        "test_preview.Kept", "--batch_size", "100", "--max_epochs", "1", "--limit_train_batches", "5", model="toys.Net"
    )
    assert len(Kept.begun) > 6  # three splits are looked at, two drawn, one timed and trained on
    assert {*Kept.begun} == {0}
    assert "over 5 steps" in capsys.readouterr().out


class Module(LightningDataModule):
    """Loaders of one's own, of which two validate."""

    num_classes = 3

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Twins("train"), 4, shuffle=True)

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(Twins("val"), 4), DataLoader(Twins("test"), 4)]


def test_a_datamodule_of_ones_own_is_looked_at(capsys) -> None:
    preview("test_preview.Module")
    printed = capsys.readouterr().out
    assert row(printed, "items") == ["20", "20"]
    assert said(printed, "1 item is in two splits") == ["train item 0 (train) = val item 19 (val)"]
    assert "first items of the val split" in PAGE.read_text()


class Skips(LightningModule):
    """Ends each epoch before its third batch."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_features, num_classes)

    def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_step_that_is_skipped_is_not_timed(capsys) -> None:
    preview("toys.Blobs", "--batch_size", "16", "--max_epochs", "4", "--num_workers", "0", model="test_preview.Skips")
    assert re.search(r"Skips on cpu: [\d,]+ items/s", capsys.readouterr().out)


class Mistaken(Blobs):
    """Points no one of which can be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise KeyError("a mistake of one's own")


def test_where_no_item_can_be_read_the_error_is_ones_own() -> None:
    with pytest.raises(KeyError, match="a mistake of one's own"):
        preview("test_preview.Mistaken")


def test_only_so_many_seconds_are_read_unless_all_is_asked_for(capsys) -> None:
    preview("test_preview.Slow", "--check_seconds", "0.1", "--num_items", "100", "--batch_size", "8")
    train = int(row(capsys.readouterr().out, "items read (--check_all: all)")[0])
    assert 0 < train < 80
    preview("test_preview.Slow", "--check_seconds", "0.1", "--num_items", "100", "--batch_size", "8", "--check_all")
    assert row(capsys.readouterr().out, "items read") == ["80", "10", "10"]


@pytest.mark.parametrize(
    ("argv", "error"),
    [("--dataset toys.Blobs --num_itemss 3", "unknown flag --num_itemss; did you mean 'num_items'?"),
     ("--dataset toys.Blobs --fast_dev_run", "preview takes no --fast_dev_run"),
     ("--model_name toys.Net", "--dataset missing")],
)  # fmt: skip
def test_what_is_typed_wrong_is_said(argv: str, error: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["preview", *argv.split()])
    assert ended.value.code == 2
    assert error in capsys.readouterr().err
