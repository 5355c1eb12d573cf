"""A run folder written by version 0.1, before its engine was rearranged, is resumed, tested and exported."""

import csv
import shutil
import warnings
from pathlib import Path

import main
import pytest
import torch
from engine.cli import discovery
from paths import HERE, PROJECT

RUN = Path("lightning_logs/version_0")
TINY = '''"""One linear layer."""

from torch import Tensor, nn


class Tiny(nn.Module):
    """Logits (B, num_classes) of images (B, C, S, S)."""

    def __init__(self, in_channels: int, img_size: int, num_classes: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(in_channels * img_size**2, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
'''
ENDED_WITH = {  # the same run, never killed, by version 0.1
    "val_loss": 1.0979968309402466,
    "val_acc": 0.8833333253860474,
    "val_f1": 0.8736969232559204,
    "train_loss": 1.1712727546691895,
    "train_acc": 0.7884481549263,
    "train_f1": 0.7864724397659302,
    "test_loss": 1.1171904802322388,
    "test_acc": 0.8777777552604675,
    "test_f1": 0.8743029236793518,
}


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder, in a project with its network."""
    import model

    project = tmp_path / "project"
    shutil.copytree(PROJECT / "model", project / "model", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "data", "engine"):
        (project / name).symlink_to(PROJECT / name)
    (project / "model" / "tiny.py").write_text(TINY, encoding="utf-8")
    monkeypatch.setattr(discovery, "ROOT", project)
    monkeypatch.setattr(model, "__path__", [*model.__path__, str(project / "model")])
    shutil.copytree(HERE / "run_of_0_1", RUN)
    return RUN


def test_a_run_of_0_1_goes_on_to_the_same_end(old_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Lightning's own warnings too
        ended = main.main(["--ckpt_path", "version_0"])
    assert {name: ended[name] for name in ENDED_WITH} == pytest.approx(ENDED_WITH, rel=1e-5)
    assert capfd.readouterr().err == ""
    assert "stratify: false\n" in (old_run / "config.yaml").read_text(encoding="utf-8")  # its own splits
    with (old_run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row["train_loss_step"]]
    assert steps == [0, 20, 40, 60, 80, 100, 120]
    for name in ("val_loss", "train_loss"):
        assert [int(row["step"]) for row in rows if row[name]] == [45, 90, 135]
    assert sum(bool(row["test_loss"]) for row in rows) == 1
    tested = main.main(["test", "--ckpt_path", "best"])
    assert tested["test_loss"] == pytest.approx(ENDED_WITH["test_loss"], rel=1e-5)
    main.main(["export", "--ckpt_path", "best"])
    assert (old_run / "network.pt2").is_file()
    assert not [path for path in RUN.parent.iterdir() if path.name != "version_0"]


def test_a_vision_transformer_of_0_1_is_measured_the_same() -> None:
    pytest.importorskip("model.vit_small")
    argv = ["--model_name", "vit_small", "--dataset", "digits", "--patch_size", "4", "--dim", "8", "--depth", "1"]
    main.main([*argv, "--num_heads", "2", "--max_epochs", "1", "--limit_train_batches", "2"])
    path = RUN / "checkpoints" / "last.ckpt"
    checkpoint, old = torch.load(path, weights_only=True), {}
    for key, value in checkpoint["state_dict"].items():
        key = key.replace("positions", "places").replace(".qkv.", ".asks.")
        old[key.replace(".projection.", ".gives.").replace(".mlp.", ".wide.")] = value
    assert old.keys() != checkpoint["state_dict"].keys()
    new = main.main(["test", "--ckpt_path", "last"])
    torch.save(checkpoint | {"state_dict": old}, path)
    assert main.main(["test", "--ckpt_path", "last"]) == new
