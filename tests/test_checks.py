"""What a project hears of ruff, mypy, lint-imports, hooks and its tests. One worker runs these: mypy has one cache."""

import re
import shutil
import sys

import pytest
import yaml

from tests.conftest import PYTEST, ROOT, git, run
from tests.test_project import blocks, green

pytestmark = pytest.mark.slow

PLAIN = """from torch import nn


class Plain(nn.Module):
    def __init__(self, in_channels, img_size, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * img_size**2, num_classes))

    def forward(self, images):
        return self.layers(images)
"""


FEATURE_FLAG = """    bad_steps: Literal["stop", "skip", "ignore"] = "stop",
    shout=False,
"""
ROOT_FILE = """# 用训练好的网络做推理，全角标点（，。；：）也可以
import main

def predict(images):
    return main, images  # 返回结果
"""


def test_the_steps_of_its_workflow_are_green_with_the_whole_gallery(bake, warm_python: str) -> None:
    project = bake(examples="gallery")
    (job,) = yaml.safe_load((project / ".github/workflows/ci.yml").read_text())["jobs"].values()
    install, *steps = [step["run"] for step in job["steps"] if "run" in step]
    assert install == 'pip install -e ".[dev]"'
    assert steps[-1] == "python -m pytest"
    for step in steps[:-1]:
        green(project, "bash", "-e", "-c", step)
    green(project, warm_python, PYTEST)


def test_its_checks_are_green_after_a_users_edits(bake, warm_python: str) -> None:
    """Files without types and docstrings, a flag in main.py, Chinese comments, a file in the root, deleted features."""
    project = bake()
    network, data = blocks(ROOT / "README.md", "python")
    for path, code in {"model/my_net.py": network, "data/my_data.py": data, "model/plain.py": PLAIN}.items():
        (project / path).write_text(code)
    (project / "serve.py").write_text(ROOT_FILE, encoding="utf-8")
    main = project / "main.py"
    old = '    bad_steps: Literal["stop", "skip", "ignore"] = "stop",\n'
    assert main.read_text().count(old) == 1
    main.write_text(main.read_text().replace(old, FEATURE_FLAG))
    (project / "engine/features/weight_averaging.py").unlink()
    shutil.rmtree(project / "engine/features/pictures")
    shutil.rmtree(project / "engine/commands/plan")
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    hooks = run("pre-commit", "run", "--all-files", cwd=project, PRE_COMMIT_HOME=str(project.parent / "hooks"))
    assert hooks.returncode == 1  # the formatter has put the file of the root in order
    hooks = run("pre-commit", "run", "--all-files", cwd=project, PRE_COMMIT_HOME=str(project.parent / "hooks"))
    assert hooks.returncode == 0, hooks.stdout + hooks.stderr
    assert hooks.stdout.count("Passed") == 3
    green(project, "lint-imports")
    assert "5 passed" in green(project, warm_python, PYTEST)  # my_net, plain, lenet; digits, my_data
    shown = run(sys.executable, "main.py", "--model_name", "my_net", "--dataset", "my_data", "--help", cwd=project)
    assert "--shout" in shown.stdout


def test_the_core_without_any_example_is_a_project(bake, warm_python: str) -> None:
    project = bake(engine="core", examples="none")
    checks = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"])
    for command in (*checks, [warm_python, PYTEST]):
        green(project, *command)


def test_the_feature_and_the_command_on_the_page_of_the_engine_work(bake, warm_python: str) -> None:
    page, project = (ROOT / "docs/engine.md").read_text(encoding="utf-8"), bake()
    paths = re.findall(r"is one file, here `(engine/\S+\.py)`", page)
    for path, code in zip(paths, re.findall(r"^```python\n(.*?)^```$", page, re.M | re.DOTALL), strict=True):
        (project / path).write_text(code, encoding="utf-8")
    assert len(paths) == 2
    names = ["--model_name", "lenet", "--dataset", "digits"]
    few = ["--accelerator", "cpu", "--max_epochs", "1", "--limit_train_batches", "2", "--gradient_noise", "0.01"]
    for argv in ([*names, *few], ["layers", *names, "--min_size", "1000"]):
        done = run(warm_python, "main.py", *argv, cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "network.head.0.weight (120, 512)" in done.stdout
    assert "bias" not in done.stdout
    for check in (["ruff", "check", "."], ["mypy"], ["lint-imports"]):
        done = run(*check, cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
