"""Networks that several devices share: two processes train what one does, go on exactly, and leave an ordinary file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
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
    main.main(["consolidate", "--ckpt_path", str(LAST)])
    file = LAST.with_name("last.whole.ckpt")
    assert str(file) in capsys.readouterr().out
    weights = torch.load(file, weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], on["state_dict"][name]) for name in weights)
    argv = ["--num_workers", "0", "--noise", "0"]
    told = [main.main(["test", "--ckpt_path", str(path), *argv]) for path in (file, LAST)]
    assert told[0] == told[1]
    main.main(["predict", "--ckpt_path", str(file), *argv])
    main.main(["export", "--ckpt_path", str(file), *argv])
    assert (RUN / "network.pt2").exists()
    assert main.main(["--ckpt_path", str(file), "--max_epochs", "3", "--devices", "1", "--strategy", "auto"])
    assert torch.load(LAST, weights_only=True)["epoch"] == 2  # a file took the folder's place
