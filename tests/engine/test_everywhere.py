"""Any folder, any working directory, any way to start processes: the same files and numbers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import main
import pytest
from paths import HERE, PROJECT, TOYS

ODD = "läufe [1] #2 50% *"
ARGV = [*TOYS, "--max_epochs", "2", "--lr", "0.05", "--no-pictures"]
SPAWN = "import multiprocessing\n\nmultiprocessing.set_start_method('spawn')\n"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project whose path a shell or a pattern would stumble over, and that nobody may write to."""
    ignore = shutil.ignore_patterns(".*", "__pycache__", "lightning_logs", "datasets")
    project = Path(shutil.copytree(PROJECT, tmp_path / "my projekt ü", ignore=ignore))
    for path in [project, *project.rglob("*")]:
        path.chmod(path.stat().st_mode & 0o555)
    (tmp_path / "spawning").mkdir()
    (tmp_path / "spawning" / "sitecustomize.py").write_text(SPAWN, encoding="utf-8")  # as on Windows and macOS
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'spawning'}:{HERE}")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # root may write all the same
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return project


def run_in(odd: Path, *argv: str, python: str = sys.executable) -> dict[str, float]:
    """Trains with the copy, by a relative path from a folder beside it, and returns what the run folder says."""
    before, stand = files(odd), odd.parent / ODD
    stand.mkdir()
    command = [python, os.path.relpath(odd / "main.py", stand), *ARGV, *argv]
    done = subprocess.run(command, cwd=stand, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert files(odd) == before
    assert os.listdir(stand) == ["lightning_logs"]
    return json.loads((stand / "lightning_logs" / "version_0" / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_workers_that_are_spawned_bring_the_same_items(odd: Path, train) -> None:
    few = ["--max_epochs", "1", "--num_sanity_val_steps", "0", "--limit_test_batches", "0"]  # each start takes seconds
    assert run_in(odd, *few, "--num_workers", "1") == train(*ARGV, *few, "--num_workers", "0")


@pytest.mark.slow
def test_two_processes_in_an_odd_folder(odd: Path, warm_python: str) -> None:
    told = run_in(odd, "--devices", "2", "--strategy", "ddp", "--max_epochs", "8", python=warm_python)
    assert told["test_acc"] > 0.9


def test_a_run_goes_on_in_an_odd_folder(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steady = ("--lr_scheduler", "constant")  # else it is planned for the epochs of a run
    whole = train(*steady, "--max_epochs", 2)
    (tmp_path / ODD).mkdir()
    monkeypatch.chdir(tmp_path / ODD)
    train(*steady, "--max_epochs", 1)
    assert main.main(["--ckpt_path", "last", "--max_epochs", "2"]) == whole
    for name in ("best", "version_0", str(Path("lightning_logs/version_0").absolute())):
        assert main.main(["test", "--ckpt_path", name])["test_loss"] == pytest.approx(whole["test_loss"])
    monkeypatch.chdir(tmp_path)
    again = main.main(["--config", f"{ODD}/lightning_logs/version_0/config.yaml", "--default_root_dir", ODD])
    assert again == whole
    assert os.listdir(f"{ODD}/lightning_logs").count("version_1") == 1


WITHOUT_UNIX = """
import os, signal, sys
import torch, pytorch_lightning  # what they need is theirs
for name in ("SIGHUP",):  # SIGUSR1 and SIGKILL are asked for by Lightning and torch
    delattr(signal, name)
for name in ("sched_getaffinity", "fork", "getuid", "geteuid", "killpg", "getpgid", "setsid"):
    delattr(os, name)
sys.modules.update(dict.fromkeys(("fcntl", "pwd", "grp", "resource", "termios", "pty", "readline")))
import main
main.main(sys.argv[1:])
main.main(["--ckpt_path", "last", "--max_epochs", "2"])
"""


@pytest.mark.slow
def test_what_only_unix_has_is_not_needed(tmp_path: Path, warm_python: str) -> None:
    Path("without_unix.py").write_text(WITHOUT_UNIX)
    command = [warm_python, "without_unix.py", *TOYS, "--max_epochs", "1"]
    path = os.pathsep.join([str(PROJECT), str(HERE)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "2" in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[-1]


def test_the_debugger_runs_with_the_flags_of_the_last_run(train) -> None:
    train("--max_epochs", 1, "--lr", 0.3)
    wanted = train("--max_epochs", 2, "--lr", 0.05, "--run_name", "second")
    [launch] = json.loads((PROJECT / ".vscode/launch.json").read_text(encoding="utf-8"))["configurations"]
    assert Path(launch["program"].replace("${workspaceFolder}", str(PROJECT))).is_file()
    assert main.main(launch["args"]) == wanted
    assert "lr: 0.05" in Path("lightning_logs/version_2/config.yaml").read_text()


def test_there_is_no_last_config_yet(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main(["--config", "last"])
    assert "--config last: No such file or directory" in capsys.readouterr().err
