"""What is left of a run, and what is shown, when the user's own code raises."""

import os
import signal
from pathlib import Path

import pytest
from paths import HERE, TOYS


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_broken_item_costs_no_run_folder_and_shows_its_own_frames(shell, warm_python: str, workers: str) -> None:
    done = shell(*TOYS, "--broken_item", "71", "--batch_size", "90", "--num_workers", workers, python=warm_python)
    assert done.returncode == 1
    assert not list(Path("lightning_logs").glob("version_*"))
    lines = done.stderr.splitlines()
    assert len(lines) < 25
    assert "toys.py" in done.stderr
    assert 'raise ValueError(f"item {index} is broken")' in done.stderr
    assert "item 71 is broken" in done.stderr
    assert "while fetching item 71 of Blobs" in done.stderr
    assert done.stderr.count("site-packages") == (workers == "2")  # the last frame: torch, which passes it on
    assert "python -X dev main.py shows them" in lines[-1]


def test_a_run_that_has_trained_is_kept(train) -> None:
    with pytest.raises(ValueError, match="item 71 is broken"):
        train("--broken_item", 71, "--batch_size", 4)
    assert Path("lightning_logs/version_0/metrics.csv").is_file()
    with pytest.raises(ValueError, match="item 71 is broken"):
        train("--broken_item", 71, "--batch_size", 90)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


def test_ctrl_c_before_the_training_is_one_line(shell) -> None:
    loss = "def loss(output, target):\n    return output.mean()\n"
    ctrl_c = "from signal import *\nsignal(SIGINT, default_int_handler)\nraise_signal(SIGINT)\n"  # a job ignores it
    Path("stopping.py").write_text(f"{ctrl_c}\n{loss}")
    done = shell(*TOYS, "--loss", "stopping.loss", PYTHONPATH=f"{HERE}{os.pathsep}{Path.cwd()}")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")
    assert not list(Path("lightning_logs").glob("version_*"))
