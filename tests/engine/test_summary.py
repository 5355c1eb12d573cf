"""What a run says of itself at the start: a line on the network, environment.json."""

import json
import subprocess
from pathlib import Path

import main
import pytest
import torch
from data import DInterface
from engine.features import environment_info
from torch import Tensor, nn
from torch.utils.data import Dataset

RUN = Path("lightning_logs/version_0")


def test_one_line_on_the_network(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1)
    # 2 * 8 + 8 and 8 * 3 + 3 weights of 4 bytes; 2 * (2 * 8 + 8 * 3) operations; the metrics are a few bytes more
    assert capsys.readouterr().out.splitlines()[1] == "Net: 51 parameters, 0.000204 MB, 80 FLOPs an item"


class Sequences(Dataset):
    """Points of different number."""

    num_classes = 2

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.ones(10 + index, 2), index % 2


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, points: Tensor) -> Tensor:
        return self.line(points).mean(1)


def test_the_operations_are_those_of_the_first_item_where_sizes_differ(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model_name", f"{__name__}.Pooled", "--dataset", f"{__name__}.Sequences", "--batch_size", "1"]
    main.main([*argv, "--accelerator", "cpu", "--num_workers", "0", "--max_steps", "1"])
    points = 10 + DInterface(Sequences).split("train").indices[0]
    assert f"Pooled: 6 parameters, 2.4e-05 MB, {2 * 2 * 2 * points} FLOPs an item" in capsys.readouterr().out


def test_the_table_is_printed_when_asked_for(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1, "--summary_depth", 3)
    rows = [line for line in capsys.readouterr().out.splitlines() if "network.layers.3" in line]
    assert len(rows) == 1
    assert "[2, 3]" in rows[0]


def test_a_summary_changes_no_number(train, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--max_epochs", 2, "--dropout", 0.5]
    assert train(*argv, "--summary_depth", 2) == train(*argv)


def test_the_environment_is_kept_and_added_to(train) -> None:
    train("--max_epochs", 1)
    (first,) = json.loads((RUN / "environment.json").read_text())
    assert first["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert first["hardware"]["cpus"] >= 1
    assert first["hardware"]["processes"] == 1
    main.main(["test", "--ckpt_path", "last"])
    main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    again = json.loads((RUN / "environment.json").read_text())
    assert again[0] == first
    assert len(again) == 2


@pytest.mark.parametrize("repository", [True, False])
def test_the_commit_where_there_is_one(train, monkeypatch: pytest.MonkeyPatch, repository: bool) -> None:

    Path("own").mkdir()
    monkeypatch.setattr(environment_info, "ROOT", Path("own").resolve())
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(Path.cwd()))
    if repository:
        Path("own/file").write_text("1")
        git = ["git", "-C", "own", "-c", "user.name=a", "-c", "user.email=a@b.c"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"], ["tag", "v1"]):
            subprocess.run([*git, *words], check=True)
    train("--max_epochs", 1)
    Path("own/file").write_text("2")
    main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    first, second = (entry["commit"] for entry in json.loads((RUN / "environment.json").read_text()))
    assert (first is not None and len(first) == 40) == repository
    assert second == (f"{first}-dirty" if repository else None)


def test_a_stream_has_no_length_and_no_sample(train, capsys: pytest.CaptureFixture[str]) -> None:
    train("--max_epochs", 1, "--dataset", "toys.Endless", "--summary_depth", 1, "--lr_scheduler", "constant")
    assert capsys.readouterr().out.splitlines()[1] == "Net: 51 parameters, 0.000204 MB"
