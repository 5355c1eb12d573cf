"""Every network and every dataset of the project trains two steps, goes on for two more, and is exported.

A new file in model/ or data/ is found by itself, and tried with the first file of the other folder that goes with it.
Give a network or a dataset that needs flags some in FLAGS, by its name (`"prices": "--loss mse_loss"`); name one in
NEEDS_FILES that cannot run without files, unless these lie in datasets/.
"""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

import main
from engine.cli import discovery, features_and_commands

QUICK = "--accelerator cpu --num_workers 0 --batch_size 4 --max_epochs 1 --limit_train_batches 2".split()
QUICK += "--limit_val_batches 1 --limit_test_batches 1".split()
FLAGS = {
    "encoder_decoder": "--dataset test_project.Texts --loss cross_entropy --hidden_dim 8",
    "gan": "--dataset digits --width 8",
    "lstm": "--dataset test_project.Sentences --hidden_dim 8",
    "mlp": "--dataset test_project.Rows",
    "super_resolution": "--dataset test_project.Enlarged --loss mse_loss --width 8",
    "unet": "--dataset test_project.Masks --width 8 --depth 2",
    "vit_small": "--dataset digits --patch_size 4 --dim 16 --depth 1",
}
NEEDS_FILES = {
    "csv_table": "a table",
    "image_folder": "folders of images",
    "mnist": "MNIST's four files, or a connection to download them",
    "paired_images": "pairs of images",
    "streaming": "Parquet files",
    "text_lines": "a file of texts",
    "video_frames": "folders of video clips",
}


class _Items(Dataset):
    """Twenty items of random numbers."""

    def __len__(self) -> int:
        return 20


class Rows(_Items):
    """Rows of four numbers (4,) in two classes."""

    num_features, num_classes = 4, 2

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(4), index % 2


class Sentences(_Items):
    """Word numbers (6,) in two classes."""

    vocabulary_size, num_classes = 10, 2

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randint(1, 10, (6,)), index % 2


class Texts(_Items):
    """Word numbers (5,) to be written again, 9 being the end."""

    vocabulary_size, max_length, end_id = 10, 5, 9

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        words = torch.randint(1, 9, (5,))
        return words, words


class Masks(_Items):
    """Images (1, 8, 8) with a class for each pixel (8, 8)."""

    in_channels, img_size, num_classes, out_channels = 1, 8, 2, 2

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.rand(1, 8, 8)
        return image, (image[0] > 0.5).long()


class Enlarged(_Items):
    """Images (1, 4, 4), and the same twice as large."""

    in_channels, scale = 1, 2

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.rand(1, 4, 4)
        return image, image.repeat_interleave(2, 1).repeat_interleave(2, 2)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test in a folder of its own, in which datasets/ is that of the project."""
    monkeypatch.chdir(tmp_path)
    if (datasets := Path(main.__file__).parent / "datasets").is_dir():
        with suppress(OSError):  # Windows allows links to some users only
            Path("datasets").symlink_to(datasets, target_is_directory=True)


def fits(*argv: str) -> bool:
    """Whether a command line is right; without torch, so that trying many costs nothing."""
    try:
        main.parse([*argv])
    except SystemExit:
        return False
    return True


def command_line(flag: str, name: str, other: str, others: list[str]) -> list[str]:
    """The flags to train a network or a dataset with; skips the test where nothing goes with it."""
    if name in NEEDS_FILES:
        pytest.skip(f"{name} needs {NEEDS_FILES[name]}")
    argv = [f"--{flag}", name, *FLAGS.get(name, "").split()]
    partners = [[]] if f"--{other}" in argv else [[f"--{other}", one] for one in others if one not in NEEDS_FILES]
    for partner in partners:
        if fits(*argv, *partner):
            return [*QUICK, *argv, *partner]
    pytest.skip(f"{name} goes with none of {others}: give it flags in FLAGS")


def check(argv: list[str]) -> None:
    """Trains, resumes and exports in the working directory."""
    main.main(argv)
    run = Path("lightning_logs/version_0")
    resumed = main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1  # the second one
    assert torch.isfinite(torch.tensor([*resumed.values()])).all()
    if "export" in features_and_commands.commands():
        refused = False
        try:
            main.main(["export", "--ckpt_path", "last"])
        except SystemExit as ended:
            refused = ended.code == 2  # by one line, such as a model of several networks
        assert refused or (run / "network.pt2").exists()


@pytest.mark.parametrize("name", discovery.names("model"))
def test_network(name: str) -> None:
    check(command_line("model_name", name, "dataset", discovery.names("data")))


@pytest.mark.parametrize("name", discovery.names("data"))
def test_dataset(name: str) -> None:
    check(command_line("dataset", name, "model_name", discovery.names("model")))
