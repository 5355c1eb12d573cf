"""The baked project as its user meets it: its own checks, and the commands of its README as they stand there."""

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import INNER, run


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("examples", ["minimal", "none"])
def test_its_own_checks_are_green(bake, examples: str) -> None:
    project = bake(examples=examples)
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
        done = run(*command, cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
    which = [] if examples == "minimal" else ["-k", "not resume and not test_values"]  # the same code, tested already
    done = run(sys.executable, "-m", "pytest", *which, cwd=project)
    assert done.returncode == 0, done.stdout[-5000:]


def test_it_runs_before_it_is_rendered() -> None:
    done = run(sys.executable, "main.py", "--model_name", "lenet", "--dataset", "digits", "--print_config", cwd=INNER)
    assert done.returncode == 0, done.stderr
    for command in (["ruff", "check", "."], [sys.executable, "-m", "pytest", "tests/test_examples.py"]):
        done = run(*command, cwd=INNER)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_can_be_followed(bake) -> None:
    project = bake()
    readme = project / "README.md"
    for code in blocks(readme, "python"):
        path = re.match(r"# (\S+)\n", code)
        (project / path[1]).write_text(code)
    commands = [line for block in blocks(readme, "bash") for line in block.splitlines()]
    assert commands[0] == 'pip install -e ".[dev]"'
    assert len(commands) > 7
    for command in commands[1:]:
        done = run("bash", "-c", command, cwd=project)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stderr == "", command
