"""What the pages about clusters say is what the engine's tests try."""

import re

from tests.conftest import INNER, ROOT

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
    assert f'"{name}": "{value}"' in tried
    (script,) = re.findall(r"^```python\n# ray_sweep.py\n(.*?)^```$", page, re.M | re.DOTALL)
    assert f'SEARCH = """\n{script}"""\n' in tried
    assert re.search(r"^`(python ray_sweep.py space.yaml --trials) 20 --", page, re.M)[1] in tried
