"""Networks that several devices share: two processes train what one does, go on exactly, and leave an ordinary file."""

import contextlib
import csv
import os
import pickle
import re
from pathlib import Path
from typing import Any

import hosts
import main
import pytest
import torch
from engine.checkpointing.find_checkpoint import find_checkpoint
from engine.features.model_parallel.sharded_checkpoint import load
from paths import TOYS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.checkpoint.metadata import Metadata

SHARDS = ["--devices", "2", "--strategy", "model_parallel"]
RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def shards(folder: str, *argv: str) -> tuple[int, str]:
    """The exit status of two processes and what they said."""
    Path(folder).mkdir(exist_ok=True)

    def run() -> None:
        os.chdir(folder)
        main.main([*argv])

    return hosts.ranks(2, run)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights_and_one_device_takes_them_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*TOYS, *SHARDS, "--batch_size", "8", "--gradient_clip_val", "1", "--no_decay_norm_bias"]
    argv += ["--dataset", "toys.Deadly", "--max_epochs", "2", "--every_n_train_steps", "1"]
    Path("whole").mkdir()
    Path("whole", "dead").touch()  # nobody dies
    for folder in ("whole", "killed"):
        status, said = shards(folder, *argv)
        assert (status == 0) == (folder == "whole"), said
    assert Path("killed/dead").exists()
    status, said = shards("killed", "--ckpt_path", "last")
    assert status == 0, said
    whole, on = (load(folder / LAST) for folder in (Path("whole"), Path("killed")))
    assert whole["global_step"] == on["global_step"]
    assert all(torch.equal(whole["state_dict"][name], on["state_dict"][name]) for name in whole["state_dict"])
    assert Path("whole", RUN, "metrics.csv").read_text() == Path("killed", RUN, "metrics.csv").read_text()

    monkeypatch.chdir("killed")
    LAST.rename(LAST.with_name("last.before.ckpt"))  # as a kill between two renames leaves it
    assert find_checkpoint("version_0", Path("lightning_logs"), resume=True) == LAST.with_name("last.before.ckpt")
    LAST.with_name("last.before.ckpt").rename(LAST)
    main.main(["consolidate", "--ckpt_path", str(LAST)])
    file = LAST.with_name("last.whole.ckpt")
    assert str(file) in capsys.readouterr().out
    weights = torch.load(file, weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], on["state_dict"][name]) for name in weights)
    told = [main.main(["test", "--ckpt_path", str(path), "--num_workers", "0"]) for path in (file, LAST)]
    assert told[0] == told[1]
    main.main(["predict", "--ckpt_path", str(file)])
    main.main(["export", "--ckpt_path", str(file)])
    assert (RUN / "network.pt2").exists()
    assert main.main(["--ckpt_path", str(file), "--max_epochs", "3", "--devices", "1", "--strategy", "auto"])
    assert torch.load(LAST, weights_only=True)["epoch"] == 2  # a file took the folder's place


TENSOR = [*SHARDS, "--tensor_parallel_size", "2"]


def rows(folder: str) -> list[dict[str, float]]:
    """What a run has logged."""
    lines = (Path(folder) / RUN / "metrics.csv").read_text().splitlines()
    return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]


def near(many: list[dict[str, float]]) -> list[Any]:
    """The same rows, but for what the order of sums changes."""
    return [pytest.approx(row, rel=1e-4) for row in many]


@pytest.mark.slow
def test_two_devices_share_each_layer_and_learn_what_one_does(train) -> None:
    argv = ["--model_name", "toys.Tally", "--noise", "0", "--batch_size", "8", "--max_epochs", "2"]
    argv += ["--gradient_clip_val", "0.5", "--log_every_n_steps", "1", "--histograms", "--pictures", "1"]
    train(*argv)
    status, said = shards("two", *TOYS, *TENSOR, *argv)
    assert status == 0, said
    assert set(re.findall(r"rank \d has \d+ of \d+ weights", said)) == {
        "rank 0 has 51 of 99 weights",
        "rank 1 has 51 of 99 weights",
    }
    one, two = rows("."), rows("two")
    assert len(one) > 12
    assert two == near(one)
    assert [row["val_items"] for row in two if "val_items" in row] == [9, 9]
    drawn = EventAccumulator(f"two/{RUN}", size_guidance={"histograms": 0}).Reload().Histograms("network.up.weight")
    assert [point.histogram_value.num for point in drawn] == [32, 32]  # of both devices

    status, said = shards("two", "predict", "--ckpt_path", "version_0", *TENSOR)
    assert status == 0, said
    table = list(csv.DictReader(Path("two", RUN, "predictions.csv").read_text().splitlines()))
    assert [row["index"] for row in table] == [str(number) for number in range(9)]


@pytest.mark.slow
def test_one_device_goes_on_in_the_middle_of_an_epoch_of_two_that_share_each_layer(train) -> None:
    argv = ["--model_name", "toys.Tally", "--dataset", "toys.Deadly", "--batch_size", "8"]
    argv += ["--max_epochs", "1", "--every_n_train_steps", "4"]
    status, said = shards("two", *TOYS, *TENSOR, *argv)
    assert status != 0, said
    assert Path("two/dead").exists()
    Path("dead").touch()  # nobody dies
    train(*argv)
    with contextlib.chdir("two"):
        main.main(["--ckpt_path", "last", "--devices", "1", "--strategy", "auto", "--tensor_parallel_size", "1"])
    assert rows("two") == near(rows("."))


@pytest.mark.slow
@pytest.mark.parametrize("share", [SHARDS, TENSOR])
def test_muon_moves_shared_matrices_as_whole_ones_and_goes_on(train, share: list[str]) -> None:
    network = "toys.Wide" if share is SHARDS else "toys.Shared"
    argv = ["--model_name", network, "--noise", "0", "--optimizer", "Muon", "--lr", "0.02", "--adamw_lr", "0.01"]
    argv += ["--lr_scheduler", "constant", "--log_every_n_steps", "1"]
    train(*argv, "--batch_size", 16, "--max_epochs", 2)
    argv += ["--batch_size", "8" if share is SHARDS else "16"]
    for folder, end in (("whole", ["--max_epochs", "2"]), ("two", ["--max_steps", "7"])):
        status, said = shards(folder, *TOYS, *share, *argv, *end)
        assert status == 0, said
    status, said = shards("two", "--ckpt_path", "last", "--max_steps", "-1", "--max_epochs", "2")
    assert status == 0, said
    one, two = rows("."), rows("whole")
    measured = [row for row in one if "train_loss_step" not in row]  # that one is of the first device's batch
    assert len(measured) == 5
    assert [row for row in two if "train_loss_step" not in row] == [pytest.approx(row, rel=3e-3) for row in measured]
    assert rows("two") == two


@pytest.mark.slow
@pytest.mark.parametrize("bad_steps", ["stop", "skip"])
def test_a_gradient_that_is_no_number_on_one_device_is_heard_by_all(bad_steps: str) -> None:
    argv = [
        "--model_name",
        "toys.Cracked",
        "--batch_size",
        "8",
        "--max_epochs",
        "1",
        "--bad_steps",
        bad_steps,
    ]
    status, said = shards(".", *TOYS, *SHARDS, *argv)
    assert (RUN / "bad_step_2.pt").exists(), said
    if bad_steps == "stop":
        assert status == 1
        where = "step 2 (epoch 1, batch 2): the gradient is NaN or infinite in network.up.weight, network.up.bias."
        assert said.count(f"FloatingPointError: {where}") == 2, said
        return
    assert status == 0, said
    assert "skipped_steps" in (RUN / "metrics.csv").read_text()
    state = load(LAST)
    assert all(one.isfinite().all() for one in state["state_dict"].values())
    assert {one["step"].item() for one in state["optimizer_states"][0]["state"].values()} == {4}


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_3"])
def test_what_needs_a_gpu_says_so(train, capsys: pytest.CaptureFixture[str], strategy: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--strategy", strategy)
    assert f"--strategy {strategy} needs a GPU; --strategy model_parallel" in capsys.readouterr().err


SHARE = ["--strategy", "model_parallel"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--tensor_parallel_size", 2], "--tensor_parallel_size goes with --strategy model_parallel"),
        ([*SHARE, "--tensor_parallel_size", 2], "--tensor_parallel_size 2 does not divide the 1 devices"),
        ([*SHARE, "--ema_decay", 0.9], "cannot average weights: leave --ema_decay and --swa_epoch out"),
        ([*SHARE, "--swa_epoch", 1], "cannot average weights: leave --ema_decay and --swa_epoch out"),
    ],
)
def test_what_cannot_be_is_said(train, capsys: pytest.CaptureFixture[str], argv: list, said: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(*argv)
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_that_does_not_say_how_its_layers_are_shared() -> None:
    status, said = shards(".", *TOYS, *TENSOR)
    assert status == 2
    assert "--tensor_parallel_size: Net has no method parallelize(self, mesh)" in said


@pytest.mark.slow
def test_images_are_laid_out_as_usual_and_the_start_line_says_so() -> None:
    status, said = shards(".", *TOYS, *SHARDS, "--dataset", "toys.ImageBlobs", "--model_name", "toys.ConvNet")
    assert status == 0, said
    assert "channels last" not in said


class Code:
    """What runs a command when it is read."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


class Reach:
    """What reaches for a name within what may be read."""

    def __reduce__(self) -> tuple:
        return getattr, (torch.Size, "mro")


def test_a_folder_that_holds_code_is_refused(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1)
    folder = RUN / "checkpoints" / "other.ckpt"
    folder.mkdir()
    empty = Metadata({}, storage_data={})
    cases = [(Code(), {}, "posix.system"), (Reach(), {}, "builtins.getattr"), (empty, {"a": Code()}, "posix.system")]
    for contents, beside, found in cases:
        (folder / ".metadata").write_bytes(pickle.dumps(contents))
        torch.save(beside, folder / "meta.pt")
        with pytest.raises(SystemExit, match="2"):
            main.main(["test", "--ckpt_path", str(folder)])
        assert f"other.ckpt is refused: it holds {found}, and could run code" in capsys.readouterr().err
    assert not Path("harmed").exists()
