"""The workflows are what GitHub takes for one, and run what is there."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import INNER, ROOT, run

WORKFLOWS = [INNER / ".github/workflows/ci.yml", *(ROOT / ".github/workflows").glob("*.yml")]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_the_form_of_one(workflow: Path, tmp_path: Path) -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = run(*command, str(workflow), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(workflow.read_text(encoding="utf-8").replace("runs-on:", "run-on:"), encoding="utf-8")
    assert run(*command, str(wrong), cwd=tmp_path).returncode == 1


def test_the_weekly_one_runs_what_the_template_has_from_the_lowest_python_on() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text(encoding="utf-8"))["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    others = commands.pop("other_systems")
    assert commands == {"newest": [".ci/run"], "oldest": ["make test-oldest"]}
    assert jobs["other_systems"]["strategy"]["matrix"]["os"] == ["windows-latest", "macos-latest"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "cookiecutter . --no-input -o build" in readme
    assert others[1] == "cookiecutter . --no-input -o build"
    assert others[-1].endswith('-m "not slow" tests/engine')
    assert (ROOT / "tests/engine").is_dir()
    assert (ROOT / ".ci/run").is_file()
    assert re.search("^test-oldest:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    lowest = jobs["newest"]["strategy"]["matrix"]["python"][0]
    for project in (ROOT / "pyproject.toml", INNER / "pyproject.toml"):
        assert tomllib.loads(project.read_text(encoding="utf-8"))["project"]["requires-python"] == f">={lowest}"
        assert tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["ruff"]["target-version"] == "py311"
