"""What the pages about clusters say is what the engine's tests try; the files on the page of the engine work."""

import re

import pytest

from tests.conftest import INNER, MYPY, ROOT, run

ENGINE = ROOT / "tests" / "engine"


def test_the_job_script_has_every_command_of_its_page() -> None:
    commands = re.findall(r"^sbatch .*", (ROOT / "recipes/slurm.md").read_text(), re.M)
    script = (INNER / "scripts/train.sbatch").read_text()
    assert len(commands) == 4
    assert re.findall(r"^#   (sbatch .*)", script, re.M) == commands


def test_the_command_for_several_machines_is_the_one_that_survives_their_faults() -> None:
    page = (ROOT / "recipes/several_machines.md").read_text()
    tried = (ENGINE / "test_cluster.py").read_text()
    (command,) = re.findall(r"^(torchrun .*) main\.py --model_name lenet --dataset mnist$", page, re.M)
    assert f'TORCHRUN = """\n{command}\n"""' in tried
    (line,) = re.findall(r"^export (\w+)=1$", page, re.M)
    assert f'environment["{line}"] = "1"' in tried


def test_the_commands_for_ray_are_those_that_survive_its_faults() -> None:
    page = (ROOT / "recipes/ray.md").read_text()
    tried = (ENGINE / "test_ray.py").read_text()
    commands = re.findall(r"^(python ray_train\.py .*--) --model_name", page, re.M)
    commands += re.findall(r"(?:^|`)(ray (?:start|get).*?)(?:$|`)", page, re.M)
    assert len(commands) == 5
    for command in commands:
        assert f' = "{command}"\n' in tried, command
    (name, value) = re.findall(r"^export (\w+)=(\w+)$", page, re.M)[0]
    assert f'{name}="{value}"' in tried
    (script,) = re.findall(r"^```python\n# ray_sweep.py\n(.*?)^```$", page, re.M | re.DOTALL)
    assert f'SEARCH = """\n{script}"""\n' in tried
    assert re.search(r"^`(python ray_sweep.py space.yaml --trials) 20 --", page, re.M)[1] in tried


@MYPY
@pytest.mark.slow
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
