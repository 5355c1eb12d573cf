"""The pictures of a run, and weight histograms."""

import csv
import math
from pathlib import Path

import main
import numpy as np
import pytest
import torch
import toys
from engine.features.pictures.prediction_samples import PredictionSamples
from engine.logging.plots import images, masks, scaled_like
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_loggers import ask, tensorboard
from torch import Tensor, nn
from torch.utils.data import Dataset

RUN = Path("lightning_logs/version_0")


class Greys(toys.Blobs):
    """Grey images whose brightness is their class, with names; a third of them is held out twice."""

    classes = ("dark", "middle $1", "明")

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        target = self.targets[index]
        return torch.full((1, 6, 5), float(target)), target


class Numbers(toys.Blobs):
    """Images to images, or to a number: the image itself, or how bright it is."""

    def __init__(self, shape: tuple[int, ...] = (1,), num_items: int = 60) -> None:
        super().__init__(num_items)
        self.shape = shape

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.full((3, 4, 4), float(index))
        return image, image if len(self.shape) == 3 else image.mean().view(self.shape)


class Constant(nn.Module):
    """Whatever comes in, the last class comes out."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.arange(float(num_classes)))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


class Same(nn.Module):
    """What comes in comes out, times one weight; its mean where a number is asked for."""

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.weight, self.mean = nn.Parameter(torch.ones(())), mean

    def forward(self, images: Tensor) -> Tensor:
        return self.weight * (images.flatten(1).mean(1, keepdim=True) if self.mean else images)


def run(network: str, dataset: str, *argv: str, folder: Path = RUN) -> set[str]:
    here = ["--model_name", network, "--dataset", dataset, "--accelerator", "cpu"]
    main.main([*here, "--num_workers", "0", "--max_epochs", "1", "--lr", "0", *argv])
    return {path.name for path in folder.glob("*.png")}


def tags(kind: str) -> set[str]:
    return set(EventAccumulator(str(RUN)).Reload().Tags()[kind])


def size(name: str) -> tuple[int, ...]:
    return imread(RUN / name).shape


def test_a_classifier_of_images_gets_all_its_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    pictures = run("test_pictures.Constant", "test_pictures.Greys", "--log_every_n_steps", "1")
    assert pictures == {"curves.png", "first_batch.png", "confusion_matrix.png", "mistakes.png"}
    assert tags("images") == {"curves", "first_batch", "confusion_matrix", "mistakes"}
    assert min(min(size(name)[:2]) for name in pictures) > 100
    assert all(np.ptp(imread(RUN / name)) > 0.9 for name in pictures)  # something is drawn on them
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "no installed font has" not in line] == []  # a machine may have no Chinese one


def test_no_pictures() -> None:
    assert run("test_pictures.Constant", "test_pictures.Greys", "--no-pictures") == set()
    assert tags("images") == set()


def test_measuring_a_checkpoint_draws_too() -> None:
    run("test_pictures.Constant", "test_pictures.Greys", "--no-pictures")
    main.main(["test", "--ckpt_path", "last", "--pictures"])
    assert {path.name for path in RUN.glob("*.png")} == {"confusion_matrix.png", "mistakes.png"}


def test_points_get_curves_and_a_matrix_but_no_images() -> None:
    assert run("toys.Net", "toys.Blobs", "--log_every_n_steps", "1") == {"curves.png", "confusion_matrix.png"}


def test_two_channels_are_no_picture() -> None:
    pictures = run("toys.ConvNet", "toys.ImageBlobs", "--log_every_n_steps", "1")
    assert pictures == {"curves.png", "confusion_matrix.png"}


def test_without_a_test_part_the_last_validation_is_drawn() -> None:
    pictures = run("test_pictures.Constant", "test_pictures.Greys", "--test_fraction", "0", "--max_epochs", "2")
    assert pictures == {"curves.png", "first_batch.png", "confusion_matrix.png", "mistakes.png"}


def test_numbers_are_drawn_over_the_true_ones_and_images_in_rows() -> None:
    mse = ["--loss", "mse_loss", "--log_every_n_steps", "1", "--batch_size", "8"]
    pictures = run("test_pictures.Same", "test_pictures.Numbers", *mse, "--mean")
    assert pictures == {"curves.png", "first_batch.png", "predicted.png"}
    images = ["--shape", "3", "4", "4"]
    made = run("test_pictures.Same", "test_pictures.Numbers", *mse, *images, folder=RUN.with_name("version_1"))
    assert made == {"curves.png", "first_batch.png", "images.png"}


def test_the_counts_and_the_worst_mistakes() -> None:
    seen = PredictionSamples()
    logits = torch.tensor([[2.0, 0, 0], [0, 3, 0], [0, 1, 0], [5, 0, 0]])
    pixels = torch.arange(4.0).view(4, 1, 1, 1)
    seen.add_classes(logits, torch.tensor([0, 2, 2, -100]), pixels)
    seen.add_classes(logits, torch.tensor([0, 1, 1, 1]), pixels + 10)
    assert seen.counts is not None
    assert seen.counts.tolist() == [[2, 0, 0], [1, 2, 0], [0, 2, 0]]
    assert seen.mistakes["image"].flatten().tolist() == [13, 1, 2]  # by falling loss
    assert seen.mistakes["true"].tolist() == [1, 2, 2]
    assert seen.mistakes["predicted"].tolist() == [0, 1, 1]
    assert seen.mistakes["probability"].tolist() == pytest.approx([0.98670, 0.90944, 0.57612], abs=1e-5)


def test_of_many_values_some_are_kept_from_all_over() -> None:
    seen = PredictionSamples()
    for start in range(0, 100_000, 500):
        values = torch.arange(float(start), start + 500)
        seen.add_values(values + 1, values, None)
    pairs = seen.pairs
    assert 2000 < len(pairs) <= 5000
    assert torch.equal(pairs[:, 1], pairs[:, 0] + 1)
    assert pairs[:, 0].quantile(torch.tensor([0.1, 0.5, 0.9])).tolist() == pytest.approx([1e4, 5e4, 9e4], rel=0.1)


ODD = {
    "no tensor": ("last", (None, torch.zeros(2))),
    "a class for each pixel of other images": ("add_classes", (torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4).long())),
    "shares of classes": ("add_classes", (torch.zeros(2, 3), torch.ones(2, 3) / 3)),
    "more classes than fit": ("add_classes", (torch.zeros(2, 5000), torch.zeros(2).long())),
    "one class": ("add_classes", (torch.zeros(2, 1), torch.zeros(2).long())),
    "targets of another shape": ("add_values", (torch.zeros(2, 3), torch.zeros(2))),
    "sequences": ("add_values", (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))),
    "nothing finite": ("add_values", (torch.full((3,), torch.nan), torch.zeros(3))),
}


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "no tensor"])
def test_odd_outputs_are_passed_over(kind: str) -> None:
    seen, (how, (output, target)) = PredictionSamples(), ODD[kind]
    getattr(seen, how)(output, target, None)
    assert (seen.counts, seen.mistakes, seen.images, len(seen.pairs)) == (None, {}, {}, 0)


def test_a_class_for_each_pixel_is_drawn_in_colour_over_the_image() -> None:
    seen, target = PredictionSamples(), torch.tensor([[[0, 1], [2, -100]]])  # (1, 2, 2); the last does not count
    output = nn.functional.one_hot(torch.tensor([[[0, 1], [1, 1]]]), 3).movedim(-1, 1).float()  # (1, 3, 2, 2)
    seen.add_classes(output, target, torch.rand(1, 3, 2, 2))
    assert seen.counts is not None
    assert seen.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    figure = masks(seen.masks.pop("input"), seen.masks, ["road", "car", "tree"], "title")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["road", "car", "tree"]
    _, said, true = (np.asarray(one.get_array()) for one in figure.axes[0].images)
    alike = (said == true).all(2)
    assert alike.tolist() == [[True, True], [False, False]]


def test_an_output_is_drawn_as_bright_as_what_it_should_be() -> None:
    target = torch.tensor([[-1.0, 0.0, 1.0], [2.0, 2.0, 2.0]]).view(2, 1, 1, 3)
    assert scaled_like(target / 2 + 1, target).flatten().tolist() == [127, 170, 212, 255, 255, 255]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 3, 700, 20), (2, 1, 5, 900)])
def test_images_of_any_size_and_content(shape: tuple[int, ...]) -> None:
    pixels = torch.full(shape, torch.inf)
    pixels[..., 0] = torch.nan
    figure = images([pixels], ["$a$"] * len(pixels), "title")
    drawn = figure.axes[0].images
    assert len(drawn) == len(pixels)
    assert max(drawn[0].get_array().shape) <= 160


def test_signals_are_drawn_as_lines_the_greatest_above() -> None:
    short = torch.stack([torch.arange(5.0), -torch.arange(5.0)])[:, None]  # (2, 1, 5)
    long = torch.zeros(1, 2, 9000)
    long[0, 0, 4321] = 1.0  # a click
    figure = images([short, long], ["up", "down", "click"], "title")
    heights = [line.get_ydata() for line in figure.axes[0].lines]
    assert [len(one) for one in heights] == [5, 5, 600, 600]
    assert (np.diff(heights[0]) < 0).all()  # of a picture, whose first row is above
    assert (np.diff(heights[1]) > 0).all()
    assert (heights[2] < heights[2][0]).sum() == 1
    spans = [line.get_xdata()[[0, -1]] for line in figure.axes[0].lines]
    assert [0 <= low < high <= 1 for low, high in spans[::2]] == [True, True]


class Waves(Dataset):
    """Sines of one or two periods, (1, 32)."""

    num_classes = 2

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return (torch.linspace(0, 2 * math.pi, 32) * (1 + index % 2) + index).sin()[None], index % 2


class Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(32, 2)

    def forward(self, waves: Tensor) -> Tensor:
        return self.line(waves.flatten(1))


def test_a_run_on_signals_has_its_first_batch_and_mistakes_and_a_preview() -> None:
    argv = ["--dataset", f"{__name__}.Waves", "--accelerator", "cpu", "--num_workers", "0"]
    main.main(["--model_name", f"{__name__}.Wrong", *argv, "--max_epochs", "1", "--lr", "0"])
    assert {"first_batch.png", "mistakes.png"} <= {path.name for path in RUN.iterdir()}
    main.main(["preview", *argv])
    assert Path("preview/train_batch.png").exists()


def test_a_run_that_breaks_off_leaves_its_curves(train) -> None:
    with pytest.raises(ValueError, match="item 17 is broken"):
        train("--pictures", "--broken_item", 17, "--log_every_n_steps", 1, "--batch_size", 4)
    rows = list(csv.DictReader((RUN / "metrics.csv").read_text().splitlines()))
    assert (RUN / "curves.png").exists() == (len(rows) > 1)


def test_a_picture_that_cannot_be_written_costs_no_run(train, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(self: toys.Net) -> None:
        (RUN / "curves.png").mkdir(exist_ok=True)

    monkeypatch.setattr(toys.Net, "each_forward", fetch)
    assert "test_acc" in train("--pictures", "--max_epochs", 2, "--log_every_n_steps", 1)
    assert f"cannot write {RUN}/curves.png: Is a directory; " in capsys.readouterr().err


def test_histograms_of_the_weights(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 2, "--histograms", "--log_every_n_steps", 1)
    assert tags("histograms") == {f"network.layers.{part}" for part in ("0.weight", "0.bias", "3.weight", "3.bias")}
    with pytest.raises(SystemExit, match="2"):
        train("--max_epochs", 2, "--histograms", "--logger", "csv")
    assert "--histograms needs TensorBoard" in capsys.readouterr().err


@pytest.mark.slow
def test_tensorboard_shows_the_pictures() -> None:
    run("test_pictures.Constant", "test_pictures.Greys", "--log_every_n_steps", "1")
    with tensorboard(RUN.parent) as address:
        assert {"curves", "confusion_matrix"} <= ask(address, "images/tags")["version_0"].keys()
        shown = ask(address, "images/images?run=version_0&tag=confusion_matrix&sample=0")
        assert len(shown) == 1
        png = ask(address, f"images/individualImage?{shown[0]['query']}", text=False)
        assert png.startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_processes_count_together(ranks) -> None:
    argv = [
        "--model_name",
        "test_pictures.Constant",
        "--dataset",
        "test_pictures.Greys",
        "--max_epochs",
    ]
    argv += ["2", "--accelerator", "cpu", "--num_workers", "0"]
    ranks(*argv, "--log_every_n_steps", "1")
    made = {path.name for path in RUN.glob("*.png")}
    assert made == {"curves.png", "first_batch.png", "confusion_matrix.png", "mistakes.png"}


def test_curves_are_drawn_over_epochs_with_the_steps_above(tmp_path: Path) -> None:
    from engine.features.pictures.metric_curves import curves

    table = tmp_path / "metrics.csv"  # 10 steps an epoch, and 20 from the second on
    table.write_text(
        "epoch,step,train_loss_step,train_loss,val_loss\n0,0,3,,\n0,5,2.5,,\n0,10,,,2\n0,10,,2.2,\n1,20,1.5,,\n"
        "1,30,,,1\n1,30,,1.2,\n2,35,0.9,,\n"
    )
    [axes] = curves(table).axes
    assert axes.get_xlabel() == "epoch"
    lines = {line.get_label().partition(" ")[0]: list(line.get_xdata()) for line in axes.lines}
    assert lines == {"train,": [0, 0.5, 1.5, 2.25], "train": [1, 2], "val": [1, 2]}
    [above] = axes.child_axes
    assert above.get_xlabel() == "step"
    axes.figure.draw_without_rendering()
    low, high = axes.get_xlim()  # both beyond what is known
    assert above.get_xlim() == pytest.approx((10 * low, 30 + 20 * (high - 2)))
    table.write_text("epoch,step,train_loss_step,train_loss,val_loss\n0,0,3,,\n0,5,2.5,,\n")
    [axes] = curves(table).axes
    assert (axes.get_xlabel(), list(axes.lines[0].get_xdata())) == ("step", [0, 5])


class Unknown(Greys):
    """The same, with a name in a character that no font has."""

    classes = ("dark", "middle", "\ue9a1")


def test_characters_that_no_font_has_are_said_once(shell, warm_python: str) -> None:
    flags = "--model_name test_pictures.Constant --dataset test_pictures.Unknown --max_epochs 1 --accelerator cpu"
    done = shell(*flags.split(), "--num_workers", "0", "--trust", python=warm_python)
    assert done.returncode == 0, done.stderr
    assert (RUN / "first_batch.png").exists()
    assert (RUN / "confusion_matrix.png").exists()
    assert done.stderr.count("no installed font has all characters of the names in them") == 1
    assert "Glyph" not in done.stderr
