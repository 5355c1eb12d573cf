"""`export`: a network in a file that runs without this project."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import main
import numpy as np
import pytest
import torch
from engine.checkpointing.checkpoint_io import load
from paths import PROJECT

RUN = Path("lightning_logs/version_0")


def test_pt2_takes_batches_of_any_size(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1, "--dataset", "toys.Named")
    capsys.readouterr()
    main.main(["export", "--ckpt_path", "last"])
    assert capsys.readouterr().out.splitlines()[1:] == [f"{RUN}/network.pt2", f"{RUN}/labels.json"]
    program = torch.export.load(RUN / "network.pt2").module()
    assert program(torch.zeros(5, 2)).shape == (5, 3)
    assert json.loads((RUN / "labels.json").read_text()) == {"classes": ["a", "b", "c"], "num_classes": 3}


def test_a_network_that_asks_for_the_length_of_a_batch(train) -> None:
    train("--max_epochs", 1, "--model_name", "toys.ConvNet", "--dataset", "toys.ImageBlobs")
    main.main(["export", "--ckpt_path", "last"])
    assert torch.export.load(RUN / "network.pt2").module()(torch.zeros(7, 2, 4, 4)).shape == (7, 3)


@pytest.fixture
def lenet() -> None:
    """A network that has learned the digits a little, as two files."""
    pytest.importorskip("model.lenet")  # the examples may have been deleted
    pytest.importorskip("data.digits")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    main.main(["--model_name", "lenet", "--dataset", "digits", "--max_epochs", "1", "--accelerator", "cpu"])
    main.main(["export", "--ckpt_path", "version_0", "--format", "pt2", "onnx"])


@pytest.mark.filterwarnings("default")  # the exporter's own
def test_onnx_answers_as_the_checkpoint(lenet, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    names = ["labels.json", "network.onnx", "network.pt2"]
    assert sorted(path.name for path in RUN.iterdir() if path.name in names or "onnx" in path.name) == names
    labels = json.loads((RUN / "labels.json").read_text())
    assert labels["preprocessing"] == {"channels": "grey", "size": 8, "white": 16, "mean": 4.88, "std": 6.02}
    network = importlib.import_module("model.lenet").LeNet(1, 10, 8)
    weights = load(next(RUN.glob("checkpoints/best*")))["state_dict"]
    network.load_state_dict({name[8:]: one for name, one in weights.items() if name.startswith("network.")})
    session = onnxruntime.InferenceSession(RUN / "network.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["images"]
    for items in (1, 2, 7):
        images = torch.randn(items, 1, 8, 8)
        (output,) = session.run(["output"], {"images": images.numpy()})
        assert output == pytest.approx(network.eval()(images).detach().numpy(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_script_of_the_readme_serves_it(lenet) -> None:
    scripts = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (script,) = [one for one in scripts if "onnxruntime" in one]
    from PIL import Image

    Image.fromarray(np.full((20, 20), 99, np.uint8)).save("digit.png")
    Path("serve.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "serve.py", str(RUN), "digit.png"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    main.main(["predict", "--ckpt_path", "version_0", "--images", "digit.png"])
    shown = (RUN / "predictions_digit.csv").read_text().splitlines()[1].split(",")
    assert done.stdout.split()[0] == shown[2]
    assert float(done.stdout.split()[1]) == pytest.approx(max(map(float, shown[3:])), abs=1e-3)


def test_without_its_packages_the_message_names_the_extra(train, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    train("--max_epochs", 1)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else found(name, *rest))
    with pytest.raises(SystemExit, match="2"):
        main.main(["export", "--ckpt_path", "last", "--format", "onnx"])
    assert '--format onnx needs onnx, onnxscript, onnxruntime: pip install -e ".[onnx]"' in capsys.readouterr().err
    assert not (RUN / "labels.json").exists()
