"""The baked project as its user meets it: its own checks, and the commands of its README as they stand there."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.conftest import INNER, ROOT, git, run
from tests.test_bake import GALLERY


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


PLAIN = """from torch import nn


class Plain(nn.Module):
    def __init__(self, in_channels, img_size, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * img_size**2, num_classes))

    def forward(self, images):
        return self.layers(images)
"""


def test_the_steps_of_its_workflow_are_green_with_the_whole_gallery(bake) -> None:
    project = bake(examples="gallery")
    (job,) = yaml.safe_load((project / ".github/workflows/ci.yml").read_text())["jobs"].values()
    install, *steps = [step["run"] for step in job["steps"] if "run" in step]
    assert install == 'pip install -e ".[dev]"'  # as this environment was made
    for step in steps:
        done = run("bash", "-e", "-c", step, cwd=project)
        assert done.returncode == 0, f"{step}\n{done.stdout[-5000:]}{done.stderr}"


def test_its_hooks_are_green_with_files_of_a_user_who_writes_neither_types_nor_docstrings(bake) -> None:
    project = bake()
    network, data = blocks(ROOT / "README.md", "python")
    for path, code in {"model/my_net.py": network, "data/my_data.py": data, "model/plain.py": PLAIN}.items():
        (project / path).write_text(code)
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    hooks = ["pre-commit", "run", "--all-files"]
    done = run(*hooks, cwd=project, PRE_COMMIT_HOME=str(project.parent / "hooks"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Passed") == 3
    done = run(sys.executable, "-m", "pytest", "tests/test_examples.py", cwd=project)
    assert done.returncode == 0, done.stdout[-5000:]


def test_its_checks_are_green_without_any_example(bake) -> None:
    project = bake(examples="none")
    few = [sys.executable, "-m", "pytest", "tests/test_train.py", "tests/test_flags.py"]
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], few):
        done = run(*command, cwd=project)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr


def test_it_runs_before_it_is_rendered() -> None:
    done = run(sys.executable, "main.py", "--model_name", "lenet", "--dataset", "digits", "--print_config", cwd=INNER)
    assert done.returncode == 0, done.stderr
    for command in (
        ["ruff", "check", "."],
        [sys.executable, "-m", "pytest", "-n", "0", "-m", "", "tests/test_examples.py"],
    ):
        done = run(*command, cwd=INNER)
        assert done.returncode == 0, done.stdout + done.stderr


NEEDED = """
__init__ annotations batches callbacks checkpoints command_line config cut discovery flags groups guard help inspection
jobs library limits loader loggers losses machine measured metrics optimizers parted runs saving schedulers settings
signatures targets watchdog
""".split()


def test_what_a_project_does_not_need_can_be_deleted(bake) -> None:
    project = bake()
    for path in (project / "engine").glob("*.py"):
        if path.stem not in NEEDED:
            path.unlink()
    for script in ("sweep.py", "ray_train.py"):
        (project / script).unlink()
    for path in (project / "tests").glob("test_*.py"):
        if path.stem not in ("test_train", "test_faults"):  # the others go with their file, or are as they were
            path.unlink()
    done = run(sys.executable, "-m", "pytest", cwd=project)
    assert done.returncode == 0, done.stdout[-5000:]
    done = run(sys.executable, "main.py", "--model_name", "lenet", "--dataset", "digits", "--help", cwd=project)
    assert done.returncode == 0, done.stderr
    for gone in ("--pictures", "--freeze", "--num_folds", "--compile"):
        assert gone not in done.stdout


STAND_IN = """
import pytest

import main
from engine import flags


def find_all(argv, callbacks=()):
    flags.parse(argv, main.SEEDS)  # says so where a file is missing
    pytest.skip("all that it needs is there")


main.main = find_all
"""


SHARED = {"tests/gallery.py", "engine/pixels.py", "engine/tables.py"}  # they go when the last one goes that needs them


def test_any_one_file_of_the_gallery_can_be_deleted(bake, tmp_path: Path) -> None:
    project = bake(examples="gallery")
    (project / "stand_in.py").write_text(STAND_IN)
    for path in [*project.glob("tests/test_gallery*.py"), *project.glob("data/*.py"), *project.glob("model/*.py")]:
        for other in GALLERY - SHARED:
            name = other.removesuffix(".py").replace("/", ".")
            assert f"from {name} " not in path.read_text(), f"{path} would not go without {other}"

    def without(file: str) -> str:
        less = Path(shutil.copytree(project, tmp_path / file / "my_project"))
        (less / file).unlink()
        named = [path for path in less.glob("tests/test_gallery*.py") if Path(file).stem in path.read_text()]
        tests = sorted(path.as_posix() for path in named)
        done = run(sys.executable, "-m", "pytest", "-p", "stand_in", "-n", "0", *tests, cwd=less)
        return f"without {file}:\n{done.stdout[-3000:]}" if done.returncode else ""

    with ThreadPoolExecutor(2) as pool:
        said = "".join(pool.map(without, sorted(file for file in GALLERY - SHARED if not file.startswith("tests/"))))
    assert not said


def test_the_readme_can_be_followed_and_says_the_same_in_either_language(bake) -> None:
    project = bake()
    readme, chinese = project / "README.md", bake(project_slug="chinese", language="中文") / "README.md"
    assert blocks(readme, "bash") == blocks(chinese, "bash")
    assert blocks(readme, "python") == blocks(chinese, "python")
    assert blocks(readme, "yaml") == blocks(chinese, "yaml")
    assert inline(readme) == inline(chinese)
    for code in blocks(readme, "python"):
        if path := re.match(r"# (\S+)\n", code):
            (project / path[1]).write_text(code)
    commands = [line for block in blocks(readme, "bash") for line in block.splitlines()]
    assert commands[0] == 'pip install -e ".[dev]"'
    assert len(commands) > 7
    for command in commands[1:]:
        done = run("bash", "-c", command, cwd=project)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stderr == "", command


def inline(page: Path) -> set[str]:
    """What a page names as code within its lines: flags, files, commands."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", prose))


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_front_page_takes_one_from_nothing_to_an_exported_network_through_a_kill(bake, readme: str) -> None:
    page, project = ROOT / readme, bake()
    assert blocks(page, "bash")[0] == "make demo\nmake test\n"
    for path, code in zip(["model/my_net.py", "data/my_data.py"], blocks(page, "python"), strict=True):
        assert f"`{path}`" in page.read_text(encoding="utf-8")
        (project / path).write_text(code)
    commands = [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("python main")]
    *before, long, on, test, export = commands
    assert len(before) == 2
    for command in before:
        assert run("bash", "-c", command, cwd=project).returncode == 0, command
    run_folder = project / "lightning_logs/version_2"
    whole = run("bash", "-c", f"{long} --default_root_dir whole", cwd=project)
    assert whole.returncode == 0, whole.stderr
    with subprocess.Popen([sys.executable, *long.split()[1:]], cwd=project, stdout=subprocess.DEVNULL) as training:
        while not (run_folder / "checkpoints/last.ckpt").exists() and training.poll() is None:
            time.sleep(0.01)
        training.kill()
    assert training.returncode == -signal.SIGKILL
    for command in (on, test, export):
        assert run("bash", "-c", command, cwd=project).returncode == 0, command
    folders = (run_folder, project / "whole/lightning_logs/version_0")
    told = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert told[0] == told[1]
    assert (run_folder / "network.pt2").exists()


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_front_page_tells_the_truth(bake, readme: str) -> None:
    page, project = ROOT / readme, bake()
    tree = re.findall(r"^(\S+) +<- ", blocks(page, "")[0], re.MULTILINE)
    assert {name.rstrip("/") for name in tree} <= {path.name for path in project.rglob("*")}
    assert inline(page) == inline(ROOT / "README.md")
    others = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8").split("## The others")[1]
    measured, told = (
        re.findall(r"^\|[^|]*(\| \d.*)$", text, re.MULTILINE) for text in (others, page.read_text("utf-8"))
    )
    assert len(measured) == 3
    assert set(measured) <= set(told)


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_gallery_on_the_front_page_has_the_flags_that_it_names(bake, readme: str) -> None:
    project, page = bake(examples="gallery"), (ROOT / readme).read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+`(?:, |、)?)+) \| (.*) \|$", page, re.MULTILINE)
    named = {name: set(re.findall(r"--(\w+)", words)) for names, words in rows for name in re.findall(r"\w+", names)}
    there = {"data": {}, "model": {}}
    for folder, flag in (("data", "--dataset"), ("model", "--model_name")):
        for path in (project / folder).glob("*.py"):
            if path.stem in named:
                shown = run(sys.executable, "main.py", flag, path.stem, "--help_all", cwd=project).stdout
                there[folder][path.stem] = set(re.findall(r"^  --(\w+)", shown, re.MULTILINE))
    found = there["data"] | there["model"]
    files = {Path(file).stem for file in GALLERY - SHARED if not file.startswith("tests/")}
    assert found.keys() == files  # the whole gallery has a row
    assert {(name, flag) for name in found for flag in named[name] - found[name]} == set()
