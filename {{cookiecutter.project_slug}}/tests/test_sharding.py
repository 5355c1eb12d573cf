"""Networks that several devices share: two processes train what one does, go on exactly, and leave an ordinary file."""

import csv
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
from engine import runs
from engine.parts import load
from tests.conftest import PROJECT, TOYS

SHARDS = ["--devices", "2", "--strategy", "model_parallel"]
RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def shards(folder: str, *argv: str) -> tuple[int, str]:
    """The exit status of two processes and what they said."""
    Path(folder).mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, str(PROJECT / "main.py"), *argv],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    return ran.returncode, ran.stdout


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights_and_one_device_takes_them_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*TOYS, *SHARDS, "--batch_size", "8", "--gradient_clip_val", "1", "--no_decay_norm_bias"]
    argv += ["--dataset", "tests.toys.Deadly", "--max_epochs", "2", "--every_n_train_steps", "1"]
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
    assert runs.find("version_0", Path("lightning_logs"), resume=True) == LAST.with_name("last.before.ckpt")
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


@pytest.mark.slow
def test_two_devices_share_each_layer_and_learn_what_one_does(train) -> None:
    argv = ["--noise", "0", "--batch_size", "8", "--max_epochs", "2"]
    argv += ["--model_name", "tests.toys.Shared", "--gradient_clip_val", "0.5", "--log_every_n_steps", "1"]
    train(*argv)
    status, said = shards("two", *TOYS, *SHARDS, "--tensor_parallel_size", "2", *argv)
    assert status == 0, said
    assert set(re.findall(r"rank \d has \d+ of \d+ weights", said)) == {
        "rank 0 has 51 of 99 weights",
        "rank 1 has 51 of 99 weights",
    }
    one, two = (
        list(csv.DictReader((Path(folder) / RUN / "metrics.csv").read_text().splitlines())) for folder in (".", "two")
    )
    assert len(one) == len(two) > 12
    for row, other in zip(one, two, strict=True):
        assert {k: float(v) for k, v in other.items() if v} == pytest.approx(
            {k: float(v) for k, v in row.items() if v}, rel=1e-4
        )


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_3"])
def test_what_needs_a_gpu_says_so(train, capsys: pytest.CaptureFixture[str], strategy: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--strategy", strategy)
    assert f"--strategy {strategy} needs a GPU; --strategy model_parallel" in capsys.readouterr().err


def test_sharing_each_layer_goes_with_the_strategy(train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--tensor_parallel_size", 2)
    assert "--tensor_parallel_size goes with --strategy model_parallel" in capsys.readouterr().err


class Code:
    """What runs a command when it is read."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


def test_a_folder_that_holds_code_is_refused(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1)
    folder = RUN / "checkpoints" / "other.ckpt"
    folder.mkdir()
    torch.save({}, folder / "meta.pt")
    (folder / ".metadata").write_bytes(pickle.dumps(Code()))
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", str(folder)])
    assert "other.ckpt is refused: it holds posix.system, and could run code" in capsys.readouterr().err
    assert not Path("harmed").exists()


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU for FSDPStrategy")
def test_fsdp_trains_on_a_gpu(train) -> None:
    assert "test_acc" in train("--strategy", "fsdp", "--accelerator", "gpu", "--devices", 1, "--max_epochs", 1)
