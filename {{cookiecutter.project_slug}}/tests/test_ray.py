"""ray_train.py on a Ray that nothing outside can reach: the same end as without Ray, whatever dies on the way."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests import hosts
from tests.conftest import PROJECT, TOYS

ray_train = pytest.importorskip("ray_train")

LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
ARGV = [*TOYS, "--max_epochs", "3", "--batch_size", "8", "--every_n_train_steps", "1"]
TWO = ["--num_ray_workers", "2", "--"]


@pytest.fixture
def host() -> Iterator[hosts.Host]:
    """A machine with no network but its own loopback, and with two cores for Ray, however many there are."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    if why := hosts.missing("mount"):
        pytest.skip(f"no network of its own for Ray here: {why}")
    made = hosts.Host("alone", "127.0.0.1")
    try:
        made.run("mount -t tmpfs none /mnt")  # Ray's files, whose sockets want a short path
        yield made
    finally:
        made.die()


def start(host: hosts.Host, folder: str, *argv: str) -> subprocess.Popen[str]:
    """Starts ray_train.py there; its process number goes to the file `pid`."""
    Path(folder).mkdir()
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": "/mnt"}
    command = [
        "sh",
        "-c",
        f'cd {folder}; echo $$ > pid; exec "$@"',
        "sh",
        sys.executable,
        str(PROJECT / "ray_train.py"),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return host.start(*command, *argv, env=environment, **pipes)


def run(host: hosts.Host, folder: str, *argv: str) -> tuple[int, str]:
    """Its exit status, and all that it said."""
    process = start(host, folder, *argv)
    said, _ = process.communicate(timeout=600)
    return process.returncode, said


@pytest.mark.slow
def test_workers_of_ray_end_as_ranks_of_ddp_do_and_one_that_dies_changes_nothing(host: hosts.Host, shell) -> None:
    done = shell(*ARGV, "--devices", "2", "--strategy", "ddp", "--default_root_dir", "ddp", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    wanted = torch.load("ddp" / LAST, weights_only=True)
    for folder, data in (("whole", "Blobs"), ("killed", "Deadly")):
        status, said = run(host, folder, *TWO, *ARGV, "--dataset", f"tests.toys.{data}")
        assert status == 0, said
        assert said.count("a worker died") == (folder == "killed")
        assert [path.name for path in Path(folder, "lightning_logs").iterdir()] == ["version_0"]
        found = torch.load(folder / LAST, weights_only=True)
        assert found["global_step"] == wanted["global_step"]
        assert all(torch.equal(found["state_dict"][name], wanted["state_dict"][name]) for name in wanted["state_dict"])
    assert Path("killed/dead").exists()
    rows = [(Path(folder) / LAST.parents[1] / "metrics.csv").read_text() for folder in ("ddp", "whole", "killed")]
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.slow
def test_an_exception_of_ones_own_ends_the_run_at_once(host: hosts.Host) -> None:
    status, said = run(host, "broken", *TWO, *ARGV, "--broken_item", "3")
    assert status == 1, said
    assert "toys.py" in said
    assert "ValueError: item 3 is broken" in said
    assert "a worker died" not in said


@pytest.mark.slow
def test_ctrl_c_ends_all(host: hosts.Host) -> None:
    process = start(host, "endless", *TWO, *ARGV, "--max_epochs", "-1", "--lr_scheduler", "constant")
    until(lambda: ("endless" / LAST).exists() or process.poll() is not None)
    assert "raylet" in host.run("ps -e")
    host.run("kill -INT $(cat endless/pid)")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "ray_train.py: ended; add --ckpt_path last behind -- to go on" in said
    until(lambda: not {"raylet", "gcs_server", "ray::"} & {*host.run("ps -eo comm").split()})


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_mistake_is_told_before_anything_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        ray_train.main([*TWO, *TOYS, "--max_epoch", "1"])
    assert "max_epochs" in capsys.readouterr().err


def test_it_says_how_ray_is_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match="2"):
        ray_train.main([*TWO, *TOYS])
    assert 'Ray is not installed: pip install -e ".[ray]"' in capsys.readouterr().err
