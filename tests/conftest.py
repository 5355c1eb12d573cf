"""Bakes, in this process, into a folder of their own; and no test leaves a process behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cookiecutter.main import cookiecutter
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
INNER = next(ROOT.glob("*cookiecutter.project_slug*"))
PYTEST = str(Path(pytest.__file__).with_name("__main__.py"))  # `-m pytest` as a script, for a warm python
WHO = {f"GIT_{who}_{what}": f"ada@{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup, which a run takes for a wish to outlive its terminal
TOGETHER = (
    "tests/engine/test_slurm.py",
    "tests/engine/test_ray.py",
    "tests/test_checks.py",
)  # what they share is costly


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Gives each test to the worker that is free, but those of a file that share what is costly to one worker.

    (Under pytest 9.2, groups of xdist 3.8 come apart: pytest-dev/pytest-xdist#1386.)
    """
    return Together(config, log)


class Together(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return file if (file := nodeid.partition("::")[0]) in TOGETHER else nodeid


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slow tests first where several processes share them: quick ones fill the gaps at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _ends_what_it_started(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kills the processes that a test has left behind, those of torchrun too, which are in sessions of their own."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("STARTED_BY_TEST", mark)
    yield
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("STARTED_BY_TEST") == mark:
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def pytest_configure(config: pytest.Config) -> None:
    """Starts the warm python that the processes of these tests share, where there are several."""
    if hasattr(os, "pidfd_open") and config.getoption("numprocesses", None):
        stack = contextlib.ExitStack()
        os.environ["WARM_PYTHON"] = str(stack.enter_context(warm_server()))
        config.add_cleanup(stack.close)


@contextlib.contextmanager
def warm_server() -> Iterator[Path]:
    """Runs warm_python.py: the program that will be there when it is ready."""
    keep = {name: value for name, value in os.environ.items() if name not in ("STARTED_BY_TEST", "PYTHONPATH")}
    with tempfile.TemporaryDirectory() as folder:  # a socket wants a short path
        command = [sys.executable, str(ROOT / "tests" / "warm_python.py"), folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=keep | {"OMP_NUM_THREADS": "1"}):
            yield Path(folder, "python")


@pytest.fixture(scope="session")
def warm_python() -> Iterator[str]:
    """A `python` that need not import torch (warm_python.py), or the real one where there can be none."""
    if not hasattr(os, "pidfd_open"):
        yield sys.executable
        return
    shared = os.environ.get("WARM_PYTHON")
    with contextlib.nullcontext(Path(shared)) if shared else warm_server() as program:
        end = time.monotonic() + 300
        while not program.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        yield str(program)


@pytest.fixture
def bake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A project baked with some answers, the others by default."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # cookiecutter keeps the answers there

    def bake(**answers: str) -> Path:
        return Path(cookiecutter(str(ROOT), no_input=True, output_dir=str(tmp_path / "out"), extra_context=answers))

    return bake


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository of the template as it stands here, tagged v1."""
    repository = tmp_path_factory.mktemp("template") / "lightning-template"
    copy(repository)
    git(repository, "init", "--quiet", "--initial-branch", "main")
    commit(repository)
    git(repository, "tag", "v1")
    return repository


def copy(to: Path) -> Path:
    """The template without what a used checkout has beside it."""
    ignore = shutil.ignore_patterns(".venv*", "build", ".git", "__pycache__", "*_cache", "lightning_logs", "datasets")
    return Path(shutil.copytree(ROOT, to, ignore=ignore))


def commit(repository: Path) -> None:
    """Commits all there is."""
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "all")


def git(repository: Path, *words: str) -> str:
    """What git says, of whom nobody is asked for a name."""
    done = run("git", *words, cwd=repository, **WHO)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def search_path(*programs: str) -> str:
    """PATH with the folders of these programs first, and then that of this environment's."""
    return os.pathsep.join([*(str(Path(one).parent) for one in (*programs, sys.executable)), os.environ["PATH"]])


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder; `python`, `ruff`, `pytest` ... are those of this environment."""
    drop = ("PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS")
    env = {key: value for key, value in os.environ.items() if key not in drop} | {"PATH": search_path()} | environment
    env["MYPY_CACHE_DIR"] = str(ROOT / "build" / "mypy_cache")  # what it knows of torch takes minutes
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=1200, check=False)
