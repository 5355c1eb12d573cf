"""`predict --files`, `--rows` of folders and of several inputs, and `load(...).predict` of what needs a Trainer."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
from gallery import QUICK
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

HERE = f"{__name__}."
RUN = Path("lightning_logs/version_0")


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((RUN / f"{name}.csv").read_text().splitlines()))


def shares(name: str) -> list[list[float]]:
    return [[float(row[key]) for key in row if key[0] == "p" and key[1:].isdigit()] for row in table(name)]


def signal(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(number % 2, 1, 5 + number % 4).astype(np.float32)


class Clips(Dataset):
    """Signals of different length in .npy files, twice as loud as there, and how long they are."""

    num_classes = 2

    def __init__(self, data_dir: str = "clips") -> None:
        self.paths = sorted(map(str, Path(data_dir).glob("*.npy")))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, float, int]:
        return *self.open_file(self.paths[index])[:2], index % 2

    def open_file(self, path: str) -> tuple[Tensor, float, int]:
        if path.endswith(".txt"):
            raise RuntimeError("no clip")
        values = 2 * torch.from_numpy(np.load(path))
        return values, float(len(values)), 0

    @staticmethod
    def collate_fn(items: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        signals, lengths, targets = zip(*items, strict=True)
        return nn.utils.rnn.pad_sequence(signals, batch_first=True), torch.tensor(lengths), torch.tensor(targets)


class MeanOfClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 2)

    def forward(self, signals: Tensor, lengths: Tensor) -> Tensor:
        return self.line(signals.sum(1, keepdim=True) / lengths[:, None])


@pytest.fixture
def clips() -> list[str]:
    """A network that has learned the clips, in version_0, and new ones to hear."""
    for folder, first in (("clips", 0), ("new", 100), ("new/more", 200)):
        Path(folder).mkdir()
        for number in range(first, first + (40 if first == 0 else 4)):
            np.save(f"{folder}/{number:03}.npy", signal(number))
    flags = ["--model_name", f"{HERE}MeanOfClip", "--dataset", f"{HERE}Clips", "--data_dir", "clips"]
    main.main([*QUICK, *flags, "--max_epochs", "2"])
    return ["predict", "--ckpt_path", "version_0"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_files_of_any_kind_are_read_as_the_items_of_the_dataset(clips, workers: str, capsys) -> None:
    Path("new/101b.npy").write_bytes(b"no array")
    Path("new/.hidden.npy").write_bytes(b"no array")
    capsys.readouterr()
    main.main([*clips, "--files", "new", "--batch_size", "3", "--num_workers", workers])
    out, err = capsys.readouterr()
    assert "predictions_new.csv: 8 rows; 1 that cannot be read left out" in out
    assert err.count("left out: ") == 1
    assert "left out: new/101b.npy (" in err
    numbers = [100, 101, 102, 103, 200, 201, 202, 203]
    paths = [f"new/{'more/' if number > 199 else ''}{number}.npy" for number in numbers]
    assert [row["id"] for row in table("predictions_new")] == paths
    assert list(table("predictions_new")[0])[:3] == ["index", "id", "class"]  # no true class is known
    run = main.load("version_0")
    means = torch.tensor([[2 * signal(number).mean()] for number in numbers])
    right = run.network.line(means).softmax(1).detach()
    np.testing.assert_allclose(shares("predictions_new"), right, atol=1e-5)
    torch.testing.assert_close(run.predict(paths), right)
    main.main([*clips, "--files", paths[5]])
    np.testing.assert_allclose(shares("predictions_201"), right[5:6], atol=1e-5)


def test_what_open_file_does_not_know_is_its_own_error_with_the_name_of_the_file(clips) -> None:
    Path("new/notes.txt").write_text("no clip")
    with pytest.raises(RuntimeError, match="no clip") as caught:
        main.main([*clips, "--files", "new", "--num_workers", "0"])
    assert "while reading new/notes.txt" in caught.value.__notes__


def refused(capsys: pytest.CaptureFixture[str], why: str, *argv: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main([*argv])
    assert why in capsys.readouterr().err


def test_a_dataset_that_opens_no_files_says_how_it_would(train, clips, capsys) -> None:
    refused(capsys, "--files nowhere: there is no such folder or file", *clips, "--files", "nowhere")
    Path("empty").mkdir()
    refused(capsys, "--files empty: there is no file below it", *clips, "--files", "empty")
    Path("empty/a.npy").write_bytes(b"no array")
    refused(capsys, "--files empty: none of its 1 files can be read, as empty/a.npy", *clips, "--files", "empty")
    refused(capsys, "--rows and --files cannot be combined", *clips, "--files", "new", "--rows", "new")
    train("--max_epochs", 1)
    method = "Blobs has no open_file(path), a method that makes of a file an item like those of __getitem__"
    refused(capsys, method, "predict", "--ckpt_path", "last", "--files", "new")


class Pairs(Dataset):
    """Two inputs an item, by position or by name."""

    num_classes = 2

    def __init__(self, by_name: bool = False) -> None:
        self.by_name, self.left = by_name, torch.randn(40, 2, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, index: int) -> Any:
        left, target = self.left[index], int(self.left[index].sum() > 0)
        return {"left": left, "right": -left, "target": target} if self.by_name else (left, -left, target)

    def open_rows(self, path: str) -> tuple[list[str], Any]:
        left, *more = torch.from_numpy(np.loadtxt(path, dtype=np.float32, ndmin=2)).split(2, 1)
        inputs: Any = dict(zip(["left", "right"], [left, *more], strict=False)) if self.by_name else (left, *more)
        return [f"row {at}" for at in range(len(left))], inputs


class Difference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.line(left - right)


@pytest.mark.parametrize("by_name", [[], ["--by_name"]])
def test_rows_of_a_folder_of_several_inputs(by_name: list[str]) -> None:
    main.main([*QUICK, "--model_name", f"{HERE}Difference", "--dataset", f"{HERE}Pairs", *by_name, "--max_epochs", "1"])
    Path("days").mkdir()
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.savetxt("days/a.txt", rows[:2])
    np.savetxt("days/b.txt", rows[2:])
    run = main.load("version_0")
    right = run.network.line(torch.from_numpy(rows[:, :2] - rows[:, 2:])).softmax(1).detach()
    main.main(["predict", "--ckpt_path", "version_0", "--rows", "days"])
    np.testing.assert_allclose(shares("predictions_days"), right, atol=1e-5)
    names = [f"days/a.txt: row {at}" for at in range(2)] + [f"days/b.txt: row {at}" for at in range(3)]
    assert [row["id"] for row in table("predictions_days")] == names
    main.main(["predict", "--ckpt_path", "version_0", "--rows", "days/b.txt"])
    np.testing.assert_allclose(shares("predictions_b"), right[2:], atol=1e-5)
    assert [row["id"] for row in table("predictions_b")] == ["row 0", "row 1", "row 2"]
    torch.testing.assert_close(run.predict(["days/a.txt", "days/b.txt"]), right)


def test_rows_of_files_that_do_not_go_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_name", f"{HERE}Difference", "--dataset", f"{HERE}Pairs", "--by_name", "--max_epochs", "1"]
    main.main([*QUICK, *flags])
    Path("days").mkdir()
    np.savetxt("days/a.txt", np.zeros((2, 4)))
    for columns, shapes in {3: "{'left': (2,), 'right': (1,)}", 1: "{'left': (1,)}"}.items():
        np.savetxt("days/b.txt", np.zeros((2, columns)))
        first = "those of days/a.txt of {'left': (2,), 'right': (2,)}"
        why = f"--rows: the rows of days/b.txt are of shapes {shapes}, and {first}"
        refused(capsys, why, "predict", "--ckpt_path", "version_0", "--rows", "days")


class Halves(Pairs):
    """Splits of its own, and an attribute with the name of one of the engine's."""

    def __init__(self, split: str) -> None:
        super().__init__()
        self.readable = torch.zeros(40, dtype=torch.bool)


def test_an_attribute_of_the_dataset_leaves_out_no_row() -> None:
    flags = ["--model_name", f"{HERE}Difference", "--dataset", f"{HERE}Halves", "--max_epochs", "1"]
    main.main([*QUICK, *flags])
    main.main(["predict", "--ckpt_path", "version_0"])
    assert len(table("predictions")) == 40


class AsksTrainer(LightningModule):
    """Counts the batches of a prediction, asks its Trainer, and takes tenths of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, points: Tensor) -> Tensor:
        return self.line(points)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] / 10, batch[1]

    def on_predict_start(self) -> None:
        self.batches = 0

    def on_predict_batch_end(self, *_: Any) -> None:
        self.batches += 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.trainer.predicting
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Points(LightningDataModule):
    """Adds 5 to each point on its way to the device."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + 5, batch[1]

    def train_dataloader(self) -> DataLoader[Any]:
        points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(points, (points.sum(1) > 0).long()), 8)

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_a_loaded_run_calls_the_hooks_that_predict_calls() -> None:
    argv = ["--model_name", f"{HERE}AsksTrainer", "--dataset", f"{HERE}Points", "--accelerator", "cpu"]
    main.main([*argv, "--max_epochs", "1"])
    main.main(["predict", "--ckpt_path", "version_0", "--format", "npy"])
    run = main.load("version_0")
    points = run.data.split("test").tensors[0]
    answers = run.predict(points)
    np.testing.assert_allclose(answers, np.load(RUN / "predictions.npy"), rtol=1e-5)
    torch.testing.assert_close(answers, run.network.line((points + 5) / 10).detach())
    assert run.network.batches == 5


def test_threads_get_each_their_own_answers() -> None:
    own = ["--model_name", f"{HERE}AsksTrainer", "--dataset", f"{HERE}Points", "--accelerator", "cpu"]
    plain = [*QUICK, "--model_name", f"{HERE}Difference", "--dataset", f"{HERE}Pairs"]
    generator = torch.Generator().manual_seed(1)
    for number, argv in enumerate((own, plain)):
        main.main([*argv, "--max_epochs", "1"])
        run = main.load(f"version_{number}")
        given = [torch.randn(size, 2, generator=generator) for size in range(1, 41)]
        inputs: list[Any] = [(one, -one) for one in given] if number else list(given)
        with torch.no_grad(), ThreadPoolExecutor(4) as threads:
            line = run.network.line
            right = [line(2 * one).softmax(1) if number else line((one + 5) / 10) for one in given]
            for answer, expected in zip(threads.map(run.predict, inputs), right, strict=True):
                torch.testing.assert_close(answer, expected)
