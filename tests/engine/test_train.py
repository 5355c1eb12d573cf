"""Train, measure, go on: flags in, files and numbers out."""

import csv
import gc
import json
import re
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path

import main
import pytest
import torch
import toys
import yaml
from data import DInterface
from paths import PROJECT
from torch.utils.data import Dataset

RUN = Path("lightning_logs/version_0")


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((RUN / name).read_text().splitlines()))


def test_a_run_learns_and_leaves_everything_in_one_folder(train) -> None:
    metrics = train("--max_epochs", 8, "--lr", 0.05)
    assert metrics["test_acc"] > 0.9
    assert {"train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc"} <= metrics.keys()
    assert json.loads((RUN / "metrics.json").read_text()) == metrics
    names = {path.name for path in RUN.iterdir()}
    assert {"config.yaml", "hparams.yaml", "metrics.csv", "metrics.json", "checkpoints"} <= names
    assert any(name.startswith("events.") for name in names)
    kept = sorted(path.name for path in (RUN / "checkpoints").iterdir())
    assert len(kept) == 2
    assert kept[0].startswith("best-epoch")
    assert kept[1] == "last.ckpt"


def test_the_csv_has_a_value_for_each_epoch(train) -> None:
    metrics = train("--max_epochs", 3)
    rows = table("metrics.csv")
    losses = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    assert len(losses) == 3
    assert losses[-1] == pytest.approx(metrics["val_loss"])


def test_the_kept_config_repeats_the_run(train) -> None:

    first = train("--max_epochs", 2, "--lr", 0.01, "--seed", 7)
    assert yaml.safe_load((RUN / "config.yaml").read_text())["lr"] == 0.01
    assert main.main(["--config", str(RUN / "config.yaml")]) == first


def test_a_run_in_64_bits_is_measured_in_64_bits(train) -> None:
    train("--max_epochs", 1, "--precision", "64-true")
    assert main.parse(["test", "--ckpt_path", "last"]).arguments["trainer"]["precision"] == "64-true"
    asked = main.parse(["test", "--ckpt_path", "last", "--precision", "32-true"])
    assert asked.arguments["trainer"]["precision"] == "32-true"
    train("--max_epochs", 1, "--precision", "bf16-mixed")
    assert "precision" not in main.parse(["test", "--ckpt_path", "last"]).arguments["trainer"]


def test_the_checkpoint_alone_is_enough_to_measure_it(train, tmp_path: Path) -> None:

    trained = train("--max_epochs", 2)
    for which in ("best", "version_0", str(RUN)):
        assert main.main(["test", "--ckpt_path", which])["test_loss"] == trained["test_loss"]
    moved = tmp_path / "moved.ckpt"
    next((RUN / "checkpoints").glob("best*")).rename(moved)
    assert main.main(["test", "--ckpt_path", str(moved)])["test_loss"] == trained["test_loss"]
    assert main.main(["validate", "--ckpt_path", "last"])["val_loss"] == pytest.approx(trained["val_loss"])


def test_the_best_checkpoint_is_that_of_the_newest_run(train) -> None:
    better, newer = train("--max_epochs", 2), train("--max_epochs", 1, "--lr", 0)
    assert better["test_loss"] < newer["test_loss"]
    assert main.main(["test", "--ckpt_path", "best"])["test_loss"] == newer["test_loss"]


def test_early_stopping(train) -> None:
    train("--max_epochs", 50, "--patience", 2, "--lr", 0)
    rows = table("metrics.csv")
    assert max(int(row["epoch"]) for row in rows if row["val_loss"]) == 2


def test_without_validation_the_training_loss_says_what_is_best(train) -> None:
    metrics = train("--max_epochs", 2, "--val_fraction", 0)
    assert "val_loss" not in metrics
    assert list((RUN / "checkpoints").glob("best-*train_loss*"))


@pytest.mark.parametrize("dataset", ["Blobs", "BlobsInParts", "BlobsForTraining", "Stream"])
def test_all_ways_to_make_the_parts(train, dataset: str) -> None:
    assert "test_acc" in train("--dataset", f"toys.{dataset}", "--max_epochs", 1)


def test_the_parts_never_overlap_and_follow_from_the_seed() -> None:
    def parts(seed: int) -> list[list[int]]:
        data = DInterface(toys.Blobs, seed=seed, val_fraction=0.2, test_fraction=0.1)
        return [list(data.split(name).indices) for name in ("train", "val", "test")]

    train, val, test = parts(1)
    assert (len(train), len(val), len(test)) == (63, 18, 9)
    assert sorted(train + val + test) == list(range(90))
    assert parts(1) == [train, val, test]
    assert parts(2) != [train, val, test]


def test_a_million_items_are_not_a_million_python_numbers() -> None:
    class Many(Dataset):
        def __len__(self) -> int:
            return 1_000_000

        def __getitems__(self, indices: list[int]) -> torch.Tensor:
            return torch.tensor(indices)

    tracemalloc.start()
    batch = next(iter(DInterface(Many).train_dataloader()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.shape == (64,)
    assert peak < 20e6  # bytes; a list of them takes 40 million


def test_balanced_draws_every_class_equally_often() -> None:
    class Skewed(toys.Blobs):
        def __init__(self) -> None:
            super().__init__(1000)
            self.targets = [0] * 900 + [1] * 50 + [2] * 50

    data = DInterface(Skewed, balanced=True, batch_size=100, num_workers=0)
    drawn = torch.cat([target for _, target in data.train_dataloader()]).bincount() / 810
    assert drawn.tolist() == pytest.approx([1 / 3] * 3, abs=0.06)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_comes_once_an_epoch_and_the_noise_ignores_the_workers(workers: int) -> None:
    data = DInterface(toys.Blobs, num_workers=workers, batch_size=7)
    batches = list(data.train_dataloader())
    assert sum(len(target) for _, target in batches) == 72
    assert min(len(target) for _, target in batches) >= 2  # 72 = 10 * 7 + 2
    plain = list(DInterface(toys.Blobs, num_workers=0, batch_size=7).train_dataloader())
    assert all(torch.equal(one[0], other[0]) for one, other in zip(batches, plain, strict=True))


@pytest.mark.slow
def test_two_processes(shell, warm_python: str) -> None:
    argv = _toys("--max_epochs", "8", "--lr", "0.05", "--devices", "2", "--strategy", "ddp")
    done = shell(*argv, python=warm_python)
    assert done.returncode == 0, done.stderr
    assert json.loads((RUN / "metrics.json").read_text())["test_acc"] > 0.9
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


def _toys(*argv: str) -> list[str]:
    from paths import TOYS

    return [*TOYS, *argv]


@pytest.mark.slow
def test_a_log_file_gets_plain_lines_and_no_warning(shell, warm_python: str) -> None:
    done = shell(*_toys("--max_epochs", "2"), python=warm_python)
    assert done.returncode == 0
    assert "\r" not in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("epoch 1/2  ")]
    assert done.stderr == ""


@pytest.mark.parametrize(("network", "can"), [("ConvNet", True), ("ViewNet", False)])
def test_channels_go_last_where_a_network_can(train, capsys, network: str, can: bool) -> None:
    argv = [
        "--model_name",
        f"toys.{network}",
        "--dataset",
        "toys.ImageBlobs",
        "--max_epochs",
        2,
    ]
    metrics = train(*argv)
    assert ("channels last" in capsys.readouterr().out) == can
    assert metrics == pytest.approx(train(*argv, "--channels_last", "false"), abs=1e-5)
    assert "channels last" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv", [["--precision", "bf16-mixed", "--gradient_clip_val", 1], ["--gradient_clip_val", 1], ["--balanced"]]
)
def test_what_the_front_page_promises_beside(train, argv: list[object]) -> None:
    argv = [*argv, "--accumulate_grad_batches", 2, "--patience", 9, "--lr", 0.02, "--batch_size", 8]
    assert train("--max_epochs", 10, *argv)["val_loss"] < 0.9  # three classes by chance: 1.1


def test_a_run_that_is_over_leaves_no_data_in_memory() -> None:
    class Heavy(toys.Blobs):
        """Data that is counted."""

    alive: weakref.WeakSet[Heavy] = weakref.WeakSet()
    for _ in range(3):
        data = DInterface(Heavy)
        data.sample()
        alive.add(data.split("train").dataset)
        del data
    gc.collect()
    assert not alive


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_steps_alone_are_an_end(train, schedule: str) -> None:
    train("--max_steps", 7, "--batch_size", 16, "--lr_scheduler", schedule)
    checkpoint = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert (checkpoint["global_step"], checkpoint["epoch"]) == (7, 1)  # 5 batches an epoch
    lr = checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]
    assert lr == pytest.approx(0 if schedule == "cosine" else 2e-3, abs=1e-9)


@pytest.mark.parametrize("test_fraction", [0.1, 0])
def test_the_table_has_the_last_epoch_and_the_best_checkpoint(train, capsys, test_fraction: float) -> None:
    metrics = train("--max_epochs", 4, "--maximize", "true", "--test_fraction", test_fraction)
    rows = [row for row in table("metrics.csv") if row["val_loss"]]
    losses = [float(row["val_loss"]) for row in rows]
    best = losses.index(min(losses))
    assert best < 3
    heads, *lines = capsys.readouterr().out.splitlines()[-8 if test_fraction else -6 : -1]
    assert heads.split() == ["epoch", "4", "best:", "epoch", f"{best + 1}"]
    assert [line.split()[0] for line in lines[:2]] == ["val_loss", "val_acc"]
    for line, name in zip(lines[:2], ("val_loss", "val_acc"), strict=True):
        assert line.split()[1:] == [f"{float(rows[number][name]):.4f}" for number in (-1, best)]
    again = main.main(["validate", "--ckpt_path", "best"])
    assert metrics["best_epoch"] == best + 1
    assert (metrics["best_val_loss"], metrics["best_val_acc"]) == pytest.approx((again["val_loss"], again["val_acc"]))
    [file] = (RUN / "checkpoints").glob("best-*")
    assert file.name.startswith(f"best-epoch{best + 1}-val_loss={min(losses):.6f}")


@pytest.mark.parametrize("end", [["--max_epochs", "2"], ["--max_steps", "4"]])
def test_a_finished_run_says_that_it_is_finished(train, end: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    metrics = train(*end)
    assert "finished" not in capsys.readouterr().out
    assert main.main(["--ckpt_path", "last"]) == metrics
    assert "the run is finished, at step 4: nothing is trained" in capsys.readouterr().out
    main.main(["--ckpt_path", "last", "--max_epochs", "3", "--max_steps", "-1"])
    assert "finished" not in capsys.readouterr().out
    pytest.importorskip("engine.features.environment_info")
    assert [entry["ended"] for entry in json.loads((RUN / "environment.json").read_text())] == ["done"] * 3


def test_the_bar_counts_as_the_lines_do(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 2, "--enable_progress_bar")
    drawn = "".join(capsys.readouterr())
    assert re.search(r"epoch 2/2: 100%.* val_loss=\d", drawn)
    assert "v_num" not in drawn
    train("--max_epochs", 2)
    assert re.search(r"^epoch 2/2  .*val_loss \d", capsys.readouterr().out, re.MULTILINE)


STARTS = """
import sys
import engine, pytorch_lightning
assert not hasattr(sys.modules["scipy.signal"], "__file__"), "it was loaded"
from scipy.signal import hamming  # as that old package does
from scipy.signal.windows import hamming as window
assert (hamming(5) == window(5)).all()
from scipy import signal
assert len(signal.butter(2, 0.5)) == 2
import scipy
assert scipy.signal.windows.hamming is window
"""


@pytest.mark.slow
def test_a_start_leaves_scipy_to_those_who_use_it() -> None:
    command = [sys.executable, "-W", "error", "-c", STARTS]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=900, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
