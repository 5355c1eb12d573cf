"""`new`: a network and a dataset to begin with."""

import shutil
from pathlib import Path

import pytest
import torch
from paths import PROJECT
from torch.utils.data import DataLoader


@pytest.fixture
def project(tmp_path: Path) -> Path:
    ignore = shutil.ignore_patterns(".venv*", "*_cache", "__pycache__", "lightning_logs")
    return Path(shutil.copytree(PROJECT, tmp_path / "project", ignore=ignore))


def test_what_is_written_goes_together_and_is_never_written_over(shell, project: Path) -> None:
    done = shell("new", "dataset", "my_data", project=project)
    assert "data/my_data.py: python main.py --model_name lenet --dataset my_data" in done.stdout, done.stderr
    done = shell("new", "network", "my_net", "--dataset", "my_data", project=project)
    assert "model/my_net.py: python main.py --model_name my_net --dataset my_data --fast_dev_run" in done.stdout
    files = [project / "data/my_data.py", project / "model/my_net.py"]
    names: dict = {"__name__": "new"}
    for file in files:
        exec(file.read_text(encoding="utf-8"), names)
    images, targets = next(iter(DataLoader(names["MyData"](num_items=6), 6)))
    network = names["MyNet"](in_channels=1, img_size=8, num_classes=2)
    assert torch.nn.functional.cross_entropy(network(images), targets) > 0
    before = files[1].read_text(encoding="utf-8")
    done = shell("new", "network", "my_net", project=project)
    assert (done.returncode, done.stderr) == (2, "main.py: error: new: model/my_net.py: File exists\n")
    assert files[1].read_text(encoding="utf-8") == before
    shell("new", "network", "我的_网络", project=project)
    assert "class 我的网络(nn.Module):" in (project / "model/我的_网络.py").read_text(encoding="utf-8")
    done = shell("new", "network", "../x", project=project)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
