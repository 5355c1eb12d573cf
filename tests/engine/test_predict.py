"""`predict`: rows in order, for the test part and for a folder of images."""

import csv
import os
from pathlib import Path
from typing import Any, ClassVar

import main
import numpy as np
import pytest
import torch
import toys
from data import DInterface
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

RUN = Path("lightning_logs/version_0")


def table(folder: Path = RUN, name: str = "predictions") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))


def test_a_row_for_each_item_with_class_and_probabilities(train) -> None:
    train("--max_epochs", 8, "--lr", 0.05, "--dataset", "toys.Named")
    main.main(["predict", "--ckpt_path", "last", "--batch_size", "2"])
    rows = table()
    part = DInterface(toys.Named).split("test").indices
    assert list(rows[0]) == ["index", "id", "true", "true_name", "class", "name", "p0", "p1", "p2"]
    assert [int(row["index"]) for row in rows] == list(range(9))
    assert [row["id"] for row in rows] == [f"point/{index}" for index in part]
    assert [int(row["true"]) for row in rows] == [index % 3 for index in part]
    assert [row["true_name"] for row in rows] == ["abc"[index % 3] for index in part]
    assert [row["name"] for row in rows] == ["abc"[int(row["class"])] for row in rows]
    assert sum(int(row["class"]) == index % 3 for row, index in zip(rows, part, strict=True)) >= 8
    for row in rows:
        shares = [float(row[f"p{number}"]) for number in range(3)]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert int(row["class"]) == int(np.argmax(shares))
    assert not list(RUN.glob("*.part"))


NAMES = {
    "=cmd|'/C calc'!A0": "'=cmd|'/C calc'!A0",
    "@SUM(A1:A9)": "'@SUM(A1:A9)",
    "-1+1|cmd": "'-1+1|cmd",
    "\t=1": "'\t=1",
    **{
        plain: plain for plain in ("-1.5", "+3e-05", "-inf", "-0IErS_cisg", "@ada", "+49 170 123", "a=b", "'=1", "id_7")
    },
}


def test_no_id_is_a_formula_and_others_stay_as_they_are(train, monkeypatch, capsys) -> None:
    built = toys.Named.__init__

    def build(self: toys.Named, *args: object, **kwargs: object) -> None:
        built(self, *args, **kwargs)
        self.ids = [[*NAMES][index % len(NAMES)] for index in range(self.num_items)]

    monkeypatch.setattr(toys.Named, "__init__", build)
    monkeypatch.setattr(toys.Named, "classes", ["=1+1", "b", "c"])
    train("--max_epochs", 1, "--dataset", "toys.Named", "--test_fraction", 0.5)
    capsys.readouterr()
    main.main(["predict", "--ckpt_path", "version_0"])
    with (RUN / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == {*NAMES.values()}
    assert {row["true_name"] for row in rows} == {"'=1+1", "b", "c"}
    assert "a ' is in front of 5 of its texts, such as '\\t=1: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ids", "written"),
    [
        (torch.arange(90), [str(index) for index in range(90)]),
        (np.arange(90) + 100, [str(100 + index) for index in range(90)]),
        (torch.arange(180).view(90, 2), None),  # tokens
        ([[7, index] for index in range(90)], None),
    ],
)
def test_ids_that_hold_several_values_are_no_names(train, monkeypatch, ids: Any, written: list[str] | None) -> None:
    built = toys.Named.__init__

    def build(self: toys.Named, *args: object, **kwargs: object) -> None:
        built(self, *args, **kwargs)
        self.ids = ids

    monkeypatch.setattr(toys.Named, "__init__", build)
    train("--max_epochs", 1, "--dataset", "toys.Named", "--val_fraction", 0.1, "--test_fraction", 0.8)
    main.main(["predict", "--ckpt_path", "version_0"])
    with (RUN / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row.get("id") in (written or [None]) for row in rows)
    assert len({row.get("id") for row in rows}) == (len(rows) if written else 1)


def test_arrays_hold_what_the_table_holds(train) -> None:
    train("--max_epochs", 1, "--dataset", "toys.Named", "--noise", 0)
    for format in ("csv", "npy", "pt"):
        main.main(["predict", "--ckpt_path", "last", "--format", format])
    rows = [[float(row[f"p{number}"]) for number in range(3)] for row in table()]
    array = np.load(RUN / "predictions.npy")
    assert array.dtype == np.float32
    assert array.tolist() == [pytest.approx(row, rel=1e-4) for row in rows]
    assert torch.equal(torch.load(RUN / "predictions.pt", weights_only=True), torch.from_numpy(array))
    assert (RUN / "predictions.txt").read_text().split() == [row["id"] for row in table()]


def test_images_come_out_as_an_array_and_fit_no_table(train, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "--model_name",
        "toys.ImageNet",
        "--dataset",
        "toys.ImagePairs",
        "--loss",
        "mse_loss",
    ]
    train(*argv, "--max_epochs", 1)
    main.main(["predict", "--ckpt_path", "last", "--format", "npy"])
    assert np.load(RUN / "predictions.npy").shape == (9, 2, 4, 4)
    with pytest.raises(SystemExit, match="2"):
        main.main(["predict", "--ckpt_path", "last"])
    assert "an output of shape (2, 4, 4) is no table: take --format npy or pt" in capsys.readouterr().err


class Levels(Dataset):
    """Images as numbers of about mean 0 and deviation 1."""

    preprocessing: ClassVar = {"white": 100, "mean": [40.0, 60.0, 20.0], "std": [20.0, 30.0, 10.0]}

    def __init__(self) -> None:
        self.levels = torch.randint(0, 101, (40, 3, 4, 5), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(self.preprocessing[name]).view(3, 1, 1) for name in ("mean", "std"))
        return (self.levels[index] - mean) / std, torch.zeros(3, 4, 5)


class Same(torch.nn.Module):
    """What went in, but for a weight that cannot learn."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return images + 0 * self.nothing


def test_images_that_come_out_are_written_as_the_files_were(train, capsys: pytest.CaptureFixture[str]) -> None:
    here = "test_predict"
    train("--model_name", f"{here}.Same", "--dataset", f"{here}.Levels", "--loss", "mse_loss", "--max_epochs", 1)
    main.main(["predict", "--ckpt_path", "last", "--format", "png"])
    assert f"{RUN}/predictions: 4 files" in capsys.readouterr().out
    part = DInterface(Levels).split("test")
    for number, index in enumerate(part.indices):
        written = np.asarray(Image.open(RUN / f"predictions/{number:06}.png"))  # (4, 5, 3)
        np.testing.assert_allclose(written, part.dataset.levels[index].movedim(0, 2) * 2.55, atol=0.51)


class Named(Levels):
    """The same, by two names in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = [f"{number % 2}.png" for number in range(len(self))]


def test_pictures_of_one_name_are_called_by_their_numbers(train) -> None:
    here = "test_predict"
    train("--model_name", f"{here}.Same", "--dataset", f"{here}.Named", "--loss", "mse_loss", "--max_epochs", 1)
    main.main(["predict", "--ckpt_path", "last", "--format", "png"])
    assert [path.name for path in sorted((RUN / "predictions").iterdir())] == [f"{at:06}.png" for at in range(4)]


def test_what_is_no_picture_is_not_written_as_one(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1)
    with pytest.raises(SystemExit, match="2"):
        main.main(["predict", "--ckpt_path", "last", "--format", "png"])
    assert "--format png: an output of shape (3,) is no picture: take npy or pt" in capsys.readouterr().err


@pytest.mark.slow
class Bids(Dataset):
    """Items with Python numbers as targets, whole or not: a batch of whole ones is of int64."""

    BIDS = (3, 4, 1250001, 2.5, 5, 6)

    def __init__(self, split: str = "train", most: int = 6) -> None:
        self.most = most

    def __len__(self) -> int:
        return self.most

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        return torch.full((2,), float(index)), self.BIDS[index]


class Rounding(torch.nn.Module):
    """Gives whole numbers for the first two items."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, points: Tensor) -> Tensor:
        return points.long() if points.max() < 2 else points + self.nothing


@pytest.mark.parametrize("most", [3, 6])
def test_targets_of_python_numbers_are_written_as_they_are(most: int) -> None:
    torch.save(toys.Line().state_dict(), "weights.pt")
    flags = ["--init_from", "weights.pt", "--model_name", "toys.Line", "--dataset", "test_predict.Bids"]
    flags += ["--loss", "mse_loss", "--most", str(most), "--accelerator", "cpu"]
    main.main(["predict", *flags, "--batch_size", "2"])
    true = [row["true"] for row in table()]
    assert true == ["3", "4", "1250001", "2.5", "5", "6"][:most]
    weights, bias = (one.double().numpy() for one in torch.load("weights.pt").values())
    told = [number * weights.sum() + bias[0] for number in range(most)]
    assert [float(row["y0"]) for row in table()] == pytest.approx(told, rel=1e-6)


class Large(Bids):
    """Targets of a million and a fraction, as float32 has them, and one that only float64 tells apart."""

    BIDS = (1000002.5, 1000003.75, 0.1, 1000000.1234567891, 7, 1e-7)


def test_numbers_are_written_with_all_of_their_digits() -> None:
    torch.save({"layer.weight": torch.full((1, 2), 500001.125), "layer.bias": torch.zeros(1)}, "weights.pt")
    flags = ["--init_from", "weights.pt", "--model_name", "toys.Line", "--dataset", "test_predict.Large"]
    main.main(["predict", *flags, "--loss", "mse_loss", "--accelerator", "cpu"])
    assert [float(row["true"]) for row in table()] == [*Large.BIDS]
    assert [float(row["y0"]) for row in table()][:3] == [0, 1000002.25, 2000004.5]
    assert [row["true"] for row in table()][:3] == ["1000002.5", "1000003.75", "0.1"]


def test_float32_is_written_with_its_own_digits() -> None:
    torch.save({"layer.weight": torch.zeros(1, 2), "layer.bias": torch.tensor([0.1])}, "weights.pt")
    flags = ["--init_from", "weights.pt", "--model_name", "toys.Line", "--dataset", "test_predict.Large"]
    main.main(["predict", *flags, "--loss", "mse_loss", "--accelerator", "cpu"])
    assert {row["y0"] for row in table()} == {"0.1"}


def test_outputs_of_two_types_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Rounding().state_dict(), "weights.pt")
    flags = ["--init_from", "weights.pt", "--model_name", "test_predict.Rounding", "--dataset", "test_predict.Bids"]
    with pytest.raises(SystemExit, match="2"):
        main.main(["predict", *flags, "--loss", "mse_loss", "--batch_size", "2", "--accelerator", "cpu"])
    assert "outputs of int64 (2,) and of float32 (2,) make no array" in capsys.readouterr().err


class Scans(Dataset):
    """Volumes, or images, of two sizes."""

    def __init__(self, split: str = "train", dims: int = 3) -> None:
        self.dims = dims

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scan = torch.zeros(1, *(4 + index,) * self.dims)
        return scan, scan


@pytest.mark.parametrize(("dims", "way"), [(3, "predict one file at a time: --files FILE"), (2, "take --format png")])
def test_outputs_of_several_sizes_get_advice_that_fits(dims: int, way: str, capsys) -> None:
    torch.save(Same().state_dict(), "weights.pt")
    flags = ["--init_from", "weights.pt", "--model_name", "test_predict.Same", "--dataset", "test_predict.Scans"]
    flags += ["--loss", "mse_loss", "--batch_size", "1", "--dims", str(dims), "--accelerator", "cpu"]
    with pytest.raises(SystemExit, match="2"):
        main.main(["predict", *flags, "--format", "npy"])
    assert f"make no array: give one type and shape, or {way}" in capsys.readouterr().err


def test_several_processes_write_the_same(ranks, train) -> None:
    train("--max_epochs", 2, "--dataset", "toys.Named", "--noise", 0)
    main.main(["predict", "--ckpt_path", "last", "--batch_size", "2"])
    alone = (RUN / "predictions.csv").read_text()
    (RUN / "predictions.csv").unlink()
    moved = (RUN / "checkpoints/last.ckpt").rename("moved.ckpt")  # then only the first process knows the folder
    ranks("predict", "--ckpt_path", str(moved), "--batch_size", "2")
    assert Path("lightning_logs/version_1/predictions.csv").read_text() == alone  # 9 items: one is there to fill up


@pytest.fixture
def lenet() -> list[str]:
    """A network that has learned the digits a little, in version_0."""
    pytest.importorskip("model.lenet")  # the examples may have been deleted
    pytest.importorskip("data.digits")
    main.main(
        ["--model_name", "lenet", "--dataset", "digits", "--max_epochs", "2", "--accelerator", "cpu", "--no-pictures"]
    )
    return ["predict", "--ckpt_path", "version_0"]


def test_a_folder_of_images_is_read_as_the_dataset_reads_its_own(lenet, capsys: pytest.CaptureFixture[str]) -> None:
    Digits = pytest.importorskip("data.digits").Digits

    main.main(lenet)
    of_part = table()
    digits, part = Digits(), DInterface(Digits).split("test").indices
    Path("new/more").mkdir(parents=True)
    for number in range(5):
        pixels = (digits.images[part[number], 0] * 6.02 + 4.88) / 16 * 255
        image = Image.fromarray(pixels.round().byte().numpy()).resize((40, 40), Image.Resampling.NEAREST)
        image.convert("RGB").save(f"new/more/{number}.PNG" if number > 2 else f"new/{number}.png")
    Path("new/1b.jpg").write_bytes(b"no picture")
    Path("new/notes.txt").write_text("no picture either")
    capsys.readouterr()
    main.main([*lenet, "--images", "new"])
    rows, said = table(name="predictions_new"), capsys.readouterr()
    assert table() == of_part
    assert [row["id"] for row in rows] == [
        f"new/{name}" for name in ("0.png", "1.png", "2.png", "more/3.PNG", "more/4.PNG")
    ]
    assert [int(row["index"]) for row in rows] == [0, 1, 3, 4, 5]
    for row, other in zip(rows, of_part, strict=False):
        assert float(row[f"p{row['class']}"]) == pytest.approx(float(other[f"p{row['class']}"]), abs=0.02)
    assert said.err == "left out: cannot identify image file 'new/1b.jpg'\n"
    main.main([*lenet, "--images", "new/0.png"])
    assert [row["id"] for row in table(name="predictions_0")] == ["new/0.png"]
    assert "predictions_new.csv: 5 rows; 1 that cannot be read left out" in said.out


def test_linked_folders_are_looked_into_and_names_of_any_bytes_are_written(lenet) -> None:
    Path("new/below").mkdir(parents=True)
    Path("far").mkdir()
    pixels = Image.fromarray(np.full((8, 8), 99, np.uint8))
    for name in (b"new/a.png", b"far/b.png", b"far/c\xff.png"):
        pixels.save(os.fsdecode(name))
    Path("new/linked").symlink_to(Path("far").resolve())
    Path("new/below/round").symlink_to(Path("new").resolve())
    for format in ("csv", "npy"):
        main.main([*lenet, "--images", "new", "--format", format])
    names = ["new/a.png", "new/linked/b.png", "new/linked/c\\udcff.png"]
    assert [row["id"] for row in table(name="predictions_new")] == names
    assert (RUN / "predictions_new.txt").read_text().splitlines() == names


@pytest.mark.parametrize(
    ("name", "why"),
    [("notes.txt", "there is no image file"), ("a.png", "none of its 1 image files can be read")],
)
def test_no_image_that_can_be_read(lenet, capsys: pytest.CaptureFixture[str], name: str, why: str) -> None:
    Path("new").mkdir()
    Path("new", name).write_bytes(b"no picture")
    for folder, said in (("new", why), ("nowhere", "there is no such folder or file")):
        with pytest.raises(SystemExit, match="2"):
            main.main([*lenet, "--images", folder])
        assert f"--images {folder}: {said}" in capsys.readouterr().err


def test_a_dataset_that_opens_no_images_says_how_it_would(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1)
    with pytest.raises(SystemExit, match="2"):
        main.main(["predict", "--ckpt_path", "last", "--images", "."])
    assert "Blobs has no open_image(path), a static method" in capsys.readouterr().err
    for argv, said in (
        (["--rows", "new.csv"], "Blobs has no open_rows(path), a method"),
        (["--rows", "new.csv", "--images", "."], "--images and --rows cannot be combined"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main.main(["predict", "--ckpt_path", "last", *argv])
        assert said in capsys.readouterr().err


class Opens(toys.Blobs):
    """Points, with what a user may return of a file by mistake."""

    found: ClassVar[object] = None

    def open_rows(self, path: str) -> object:
        return self.found

    def open_image(self, path: str) -> object:
        return Image.new("RGB", (4, 4))


def test_what_a_dataset_makes_of_a_file_is_checked(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--dataset", "test_predict.Opens", "--max_epochs", 1)
    Path("new.csv").touch()
    Image.new("RGB", (4, 4)).save("a.png")
    rows = "--rows: Opens.open_rows should return a name for each row, and a tensor of their inputs (N, ...)"
    for found in (torch.zeros(3, 2), (["a"], torch.zeros(3, 2)), (["a"], [[0.0, 0.0]])):
        Opens.found = found
        with pytest.raises(SystemExit, match="2"):
            main.main(["predict", "--ckpt_path", "last", "--rows", "new.csv"])
        assert rows in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main.main(["predict", "--ckpt_path", "last", "--images", "a.png"])
    assert "--images: open_image returns Image, where a tensor is expected" in capsys.readouterr().err


def test_mnist_opens_an_image_as_its_own() -> None:
    MNIST = pytest.importorskip("data.mnist").MNIST
    pixels = np.random.default_rng(1).integers(0, 100, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save("one.png")
    Image.fromarray(255 - pixels).save("dark_on_light.png")
    expected = (torch.from_numpy(pixels).float() - 33.3) / 78.6
    assert torch.equal(MNIST.open_image("one.png"), expected[None])
    assert torch.equal(MNIST.open_image("dark_on_light.png"), expected[None])


def test_digits_drawn_in_ink_are_read() -> None:
    """The real digits, as light on dark and as dark on light."""
    Digits = pytest.importorskip("data.digits").Digits
    digits = Digits()
    for number in range(20):
        pixels = (digits.images[number, 0] * 6.02 + 4.88).div(16).mul(255).round().byte().numpy()
        for image, name in ((pixels, "light.png"), (255 - pixels, "dark.png")):
            Image.fromarray(image).resize((80, 80), Image.Resampling.NEAREST).save(name)
            torch.testing.assert_close(Digits.open_image(name), digits.images[number], atol=0.01, rtol=0)
