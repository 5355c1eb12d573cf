"""Several machines, and jobs that are started again: on real parts, as far as one machine has them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT, TOYS

ARGV = [*TOYS, "--max_epochs", "3", "--batch_size", "8", "--every_n_train_steps", "1", "--devices", "2"]
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")


def torchrun(folder: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Two ranks that are started again when one dies."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--max_restarts", "2"]
    command += [str(PROJECT / "main.py"), *ARGV, *argv]
    Path(folder).mkdir()
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_a_rank_that_dies_under_torchrun_is_replaced_and_the_run_ends_the_same() -> None:
    for folder, data in (("whole", "Blobs"), ("killed", "Deadly")):
        done = torchrun(folder, "--dataset", f"tests.toys.{data}", "--default_root_dir", ".")
        assert done.returncode == 0, done.stderr[-3000:]
    assert Path("killed/dead").exists()
    assert [path.name for path in Path("killed/lightning_logs").iterdir()] == ["version_0"]
    whole, killed = (torch.load(folder / LAST, weights_only=True) for folder in (Path("whole"), Path("killed")))
    assert whole["global_step"] == killed["global_step"]
    assert all(torch.equal(whole["state_dict"][name], killed["state_dict"][name]) for name in whole["state_dict"])
    rows = [(Path(folder) / LAST.parents[1] / "metrics.csv").read_text() for folder in ("whole", "killed")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_several_processes_measure_what_one_does(shell) -> None:
    argv = [*TOYS, "--dataset", "tests.toys.Numbers", "--model_name", "tests.toys.Line", "--loss", "mse_loss"]
    argv += ["--num_items", "94", "--val_fraction", "0.3", "--test_fraction", "0.3", "--batch_size", "8"]
    done = shell(*argv, "--max_epochs", "1")  # 28 items to validate on, 28 to test: 3 processes add 2
    assert done.returncode == 0, done.stderr
    told = {}
    for devices in ("1", "3"):
        for action in ("validate", "test"):
            done = shell(action, "--ckpt_path", "last", "--devices", devices, "--strategy", "ddp", "--batch_size", "8")
            assert done.returncode == 0, done.stderr
        told[devices] = json.loads(Path("lightning_logs/version_0/metrics.json").read_text())
    assert told["1"].keys() >= {"val_mae", "test_mae", "val_loss", "test_loss"}
    assert told["3"] == pytest.approx(told["1"], rel=1e-6)
