"""Bakes: in this process, into a folder of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parent.parent
INNER = next(ROOT.glob("*cookiecutter.project_slug*"))


@pytest.fixture
def bake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A project baked with some answers, the others by default."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # cookiecutter keeps the answers there

    def bake(**answers: str) -> Path:
        return Path(cookiecutter(str(ROOT), no_input=True, output_dir=str(tmp_path / "out"), extra_context=answers))

    return bake


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder; `python`, `ruff`, `pytest` ... are those of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    drop = ("PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS")
    env = {key: value for key, value in os.environ.items() if key not in drop} | {"PATH": path} | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=1200, check=False)
