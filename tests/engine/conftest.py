"""One way in for all tests: a command line, run in this process in an empty folder."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import main
import pytest
from paths import HERE, PROJECT, TOYS

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share the cores
os.environ["PYTHONPATH"] = str(HERE)


@pytest.fixture(autouse=True, scope="session")
def _plain_backward() -> None:
    """The first backward pass of this process.

    Were it one on fake tensors, as `plan` and torch.compile have them, torch would let no fork compute gradients.
    """
    import torch

    torch.ones((), requires_grad=True).backward()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    _forget()
    yield
    _forget()


def _forget() -> None:
    """Drops what a run of several processes leaves to the next one, which would wait for them."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_initialized():  # by a run that was refused when it had begun
        torch.distributed.destroy_process_group()


@pytest.fixture
def train() -> Callable[..., dict[str, float]]:
    """Runs the toys with further flags and returns the metrics."""

    def run(*argv: str | int | float) -> dict[str, float]:
        return main.main([*TOYS, *map(str, argv)])

    return run


@pytest.fixture
def shell() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python main.py` in a process of its own."""

    def run(
        *argv: str, project: Path = PROJECT, python: str = sys.executable, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [python, str(project / "main.py"), *argv]
        return subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=900, check=False
        )

    return run


@pytest.fixture
def ranks() -> Callable[..., str]:
    """Runs a command line in two processes, forks of this one, and returns what they print."""
    import hosts  # it imports torch, which reads OMP_NUM_THREADS then

    def run(*argv: str, number: int = 2) -> str:
        words = [*argv, "--devices", str(number), "--strategy", "ddp"]
        status, said = hosts.ranks(number, lambda: main.main(words))
        assert status == 0, said
        return said

    return run
