"""The baked project as its user meets it: its own checks, and the commands of its README as they stand there."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import INNER, ROOT, run, search_path
from tests.test_bake import GALLERY

pytestmark = pytest.mark.slow


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def green(project: Path, *command: str) -> str:
    """Runs one of the project's own checks and returns what it printed."""
    done = run(*command, cwd=project)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-5000:]}{done.stderr[-3000:]}"
    return done.stdout


def test_the_core_trains_and_resumes_as_the_whole_engine_does(bake) -> None:
    project = bake(engine="core")
    tests = ["tests/engine/test_train.py", "tests/engine/test_resume.py"]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "not slow", *tests]
    done = run(*command, "-o", f"pythonpath={project} {ROOT / 'tests/engine'}", cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:]


def test_it_runs_before_it_is_rendered() -> None:
    green(INNER, sys.executable, "main.py", "--model_name", "lenet", "--dataset", "digits", "--print_config")


DELETE = """
import sys
import main
from engine.cli import features_and_commands
flags = set(main.parse(sys.argv[1:]).flags)
print(*sorted(flags), "ACTIONS", *sorted(features_and_commands.actions()))
"""


def test_any_one_feature_or_command_can_be_deleted(bake) -> None:
    project = bake()

    def known(less: Path) -> tuple[set[str], set[str]]:
        argv = ["--model_name", "lenet", "--dataset", "digits"]
        flags, _, actions = green(less, sys.executable, "-c", DELETE, *argv).partition("ACTIONS")
        return set(flags.split()), set(actions.split())

    flags, actions = known(project)
    for folder in ("features", "commands"):
        for path in sorted((project / "engine" / folder).iterdir()):
            if path.name.startswith("_"):
                continue
            aside = path.rename(project.parent / path.name)
            fewer_flags, fewer_actions = known(project)
            assert fewer_flags <= flags, path
            assert actions - fewer_actions == ({path.stem} if folder == "commands" else set()), path
            aside.rename(path)


def test_any_one_file_of_the_gallery_can_be_deleted(bake) -> None:
    project, shared = bake(examples="gallery"), {"data/_columns.py", "data/_images.py", "data/_file_errors.py"}
    for path in [*project.glob("tests/*.py"), *project.glob("data/*.py"), *project.glob("model/*.py")]:
        for other in GALLERY - shared:
            name = other.removesuffix(".py").replace("/", ".")
            assert f"from {name} " not in path.read_text(), f"{path} would not go without {other}"


def test_the_readme_can_be_followed_and_says_the_same_in_either_language(bake, warm_python: str) -> None:
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
        done = run("bash", "-c", command, cwd=project, PATH=search_path(warm_python))
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stderr == "", command


def inline(page: Path) -> set[str]:
    """What a page names as code within its lines: flags, files, commands."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", prose))


def test_the_front_page_takes_one_from_nothing_to_an_exported_network_through_a_kill(bake, warm_python: str) -> None:
    page, chinese, project, warm = ROOT / "README.md", ROOT / "README.zh-CN.md", bake(), search_path(warm_python)
    assert blocks(page, "bash")[0] == "make demo\nmake test\n"
    assert blocks(page, "bash") == blocks(chinese, "bash")  # so that one of the two need be followed
    assert blocks(page, "python") == blocks(chinese, "python")
    for path, code in zip(["model/my_net.py", "data/my_data.py"], blocks(page, "python"), strict=True):
        assert f"`{path}`" in page.read_text(encoding="utf-8")
        assert f"`{path}`" in chinese.read_text(encoding="utf-8")
        (project / path).write_text(code)
    commands = [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("python main")]
    *before, long, on, test, export = commands
    assert len(before) == 2
    for command in before:
        assert run("bash", "-c", command, cwd=project, PATH=warm).returncode == 0, command
    run_folder = project / "lightning_logs/version_2"
    whole = run("bash", "-c", f"{long} --default_root_dir whole", cwd=project, PATH=warm)
    assert whole.returncode == 0, whole.stderr
    with subprocess.Popen([sys.executable, *long.split()[1:]], cwd=project, stdout=subprocess.DEVNULL) as training:
        while not (run_folder / "checkpoints/last.ckpt").exists() and training.poll() is None:
            time.sleep(0.01)
        training.kill()
    assert training.returncode == -signal.SIGKILL
    for command in (on, test, export):
        assert run("bash", "-c", command, cwd=project, PATH=warm).returncode == 0, command
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


def test_the_gallery_on_the_front_page_has_the_flags_that_it_names(bake) -> None:
    project = bake(examples="gallery")
    named, chinese = named_flags(ROOT / "README.md"), named_flags(ROOT / "README.zh-CN.md")
    assert named == chinese
    there = {"data": {}, "model": {}}
    for folder, flag in (("data", "--dataset"), ("model", "--model_name")):
        for path in (project / folder).glob("*.py"):
            if path.stem in named:
                shown = run(sys.executable, "main.py", flag, path.stem, "--help_all", cwd=project).stdout
                there[folder][path.stem] = set(re.findall(r"^  --(\w+)", shown, re.MULTILINE))
    found = there["data"] | there["model"]
    files = {Path(file).stem for file in GALLERY if not Path(file).name.startswith("_")}
    assert found.keys() == files  # the whole gallery has a row
    assert {(name, flag) for name in found for flag in named[name] - found[name]} == set()


def named_flags(readme: Path) -> dict[str, set[str]]:
    """The flags that the table of the gallery names beside each file."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, |、)?)+) \| (.*) \|$", readme.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: set(re.findall(r"--(\w+)", words)) for names, words in rows for name in re.findall(r"\w+", names)}
