"""Runs by name, and the table of all runs."""

import io
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import main
import pandas
import pytest
import yaml
from paths import TOYS
from pytorch_lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path("lightning_logs")
QUICK = ["--max_epochs", 1, "--no-pictures"]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line with which a command line is refused."""
    with pytest.raises(SystemExit, match="2"):
        main.main([*argv])
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def config(number: int) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"version_{number}" / "config.yaml").read_text("utf-8"))


def test_a_run_is_found_by_its_name_which_no_other_may_have(train, capsys) -> None:
    train(*QUICK, "--run_name", "first", "--logger", "tensorboard", "--tags", "small", "aug", "--notes", "as: before")
    train(*QUICK, "--logger", "csv")
    wanted = main.main(["test", "--ckpt_path", "version_0"])
    assert main.main(["test", "--ckpt_path", "first"]) == wanted
    kept = config(0)
    assert (kept["run_name"], kept["tags"], kept["notes"]) == ("first", ["small", "aug"], "as: before")
    shown = EventAccumulator(str(ROOT / "version_0/first")).Reload().Tensors("config/text_summary")[0]
    assert b"run_name: first" in shown.tensor_proto.string_val[0]
    with pytest.raises(SystemExit, match="2"):
        train(*QUICK, "--run_name", "first")
    assert "--run_name first is lightning_logs/version_0: give another" in capsys.readouterr().err
    assert not (ROOT / "version_2").exists()
    main.main(["--ckpt_path", "first", "--max_epochs", "2"])
    events = EventAccumulator(str(ROOT / "version_0/first")).Reload()  # TensorBoard calls a run by its folder
    assert [point.step for point in events.Scalars("val_loss")] == [2, 4]
    assert not list((ROOT / "version_0").glob("events.*"))
    assert (config(0)["run_name"], config(0)["max_epochs"]) == ("first", 2)
    train(*QUICK, "--init_from", "first", "--run_name", "second", "--logger", "csv")
    assert config(2)["run_name"] == "second"


def test_nobody_counts_epochs_where_there_is_no_metrics_csv(train, capsys) -> None:
    train(*QUICK, "--logger", "tensorboard")
    for argv in ([], ["--sort", "epochs"]):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="0"):
            main.main(["runs", *argv])
        assert capsys.readouterr().out.split()[:5] == ["run", "network", "dataset", "best", "age"]


def test_a_name_that_no_run_has_is_told_the_nearest(train, capsys) -> None:
    train(*QUICK, "--logger", "csv", "--run_name", "baseline")
    for number in range(1, 7):
        (ROOT / f"version_{number}").mkdir()
    latest = "version_2, version_3, version_4, version_5, version_6; all: python main.py runs"
    there = f"; did you mean baseline (version_0)?; {ROOT}/ has {latest}\n"
    assert refused(capsys, "test", "--ckpt_path", "basline").endswith(f"no such file or run folder{there}")
    assert refused(capsys, "report", "basline").endswith(f"there is no run 'basline'{there}")
    (ROOT / "version_2").rmdir()
    (ROOT / "version_3").rmdir()
    said = refused(capsys, "--ckpt_path", "version_9")
    assert said.endswith(
        f"; {ROOT}/ has baseline (version_0), version_1, version_4, version_5, version_6; all: python main.py runs\n"
    )


@pytest.mark.parametrize("name", ["last", "version_7", "a/b", "s3://x", ".hidden"])
def test_a_name_that_means_something_else_is_refused(train, capsys, name: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(*QUICK, f"--run_name={name}")
    assert f"--run_name {name}: letters, digits and _ . + = - only" in capsys.readouterr().err
    assert not list(ROOT.glob("*"))


def test_a_name_that_is_two_things_is_refused_and_one_of_a_failed_run_is_free(train, capsys) -> None:
    train(*QUICK, "--run_name", "both", "--logger", "csv")
    Path("both").mkdir()
    assert "--ckpt_path both is lightning_logs/version_0, and both too" in refused(capsys, "test", "--ckpt_path=both")
    for path in (ROOT / "version_0/checkpoints").iterdir():
        path.unlink()
    train(*QUICK, "--run_name", "both", "--logger", "csv")
    assert config(1)["run_name"] == "both"


def test_each_fold_has_a_name_of_its_own(train) -> None:
    train(*QUICK, "--num_folds", 2, "--run_name", "folds", "--logger", "csv")
    assert [config(number)["run_name"] for number in (0, 1)] == ["folds-fold1", "folds-fold2"]


def test_wandb_and_mlflow_get_name_tags_and_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.logging import loggers

    given: dict[str, Any] = {}
    monkeypatch.setattr(loggers, "WandbLogger", lambda **labels: given.update(labels))
    monkeypatch.setattr(loggers.MLFlowLogger, "__init__", lambda self, *args, **labels: given.update(labels, args=args))
    monkeypatch.setattr(loggers.MLFlowLogger, "run_id", "1", raising=False)
    labels: dict[str, Any] = {"run_name": "first", "tags": ("small",), "notes": "as before"}
    loggers.build(tmp_path, logger=("wandb",), **labels)
    assert given.items() >= {"name": "first", "tags": ("small",), "notes": "as before"}.items()
    loggers.build(tmp_path, logger=("mlflow",), **labels)
    assert given["args"][1] == "first"
    assert given["tags"] == {"small": "", "mlflow.note.content": "as before"}


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """The lines that `runs` prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main.main(["runs", *argv])
    return capsys.readouterr().out.splitlines()


class Raise(Callback):
    """Ends the second epoch."""

    def __init__(self, how: Callable[[], None]) -> None:
        self.how = how

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            self.how()


def fail() -> None:
    raise ValueError("no more\nlines")


def test_a_line_a_run_says_how_it_ended(train, capsys) -> None:
    quick = [*TOYS, "--max_epochs", "3", "--no-pictures", "--logger", "csv"]
    train(
        "--max_epochs", 2, "--no-pictures", "--run_name", "first", "--logger", "csv", "--tags", "small,aug", "--lr", 0.1
    )
    with pytest.raises(ValueError, match="no more"):
        main.main([*quick, "--lr", "0.02"], [Raise(fail)])
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        main.main([*quick, "--lr", "0.001"], [Raise(lambda: os.kill(os.getpid(), signal.SIGTERM))])
    if not (child := os.fork()):
        main.main([*quick, "--lr", "0.03"], [Raise(lambda: os.kill(os.getpid(), signal.SIGKILL))])
    os.waitpid(child, 0)
    lines = shown(capsys)
    assert [line.split()[0] for line in lines] == ["run", "version_0", "version_1", "version_2", "version_3"]
    ends = ["state", "done", "failed: ValueError: no more", "stopped by SIGTERM", "killed"]
    assert [line.rstrip().endswith(end) for line, end in zip(lines, ends, strict=True)] == [True] * 5, lines
    assert " first " in lines[1]
    values = pandas.read_csv(ROOT / "version_0/metrics.csv").dropna(subset="val_loss")
    epoch, value = values.loc[values["val_loss"].idxmin(), ["epoch", "val_loss"]]
    assert f"  2       val_loss {value:.4g} (epoch {epoch + 1:.0f})" in lines[1]  # which counts from 0 in metrics.csv

    assert [line.split()[0] for line in shown(capsys, "--where", "lr<=0.02")[1:]] == ["version_1", "version_2"]
    assert [line.split()[0] for line in shown(capsys, "--where", "state=failed")[1:]] == ["version_1"]
    assert [line.split()[0] for line in shown(capsys, "--tags", "small")[1:]] == ["version_0"]
    rates = [0, 3, 1, 2]  # by falling rate
    assert [line.split()[0] for line in shown(capsys, "--sort", "lr")[1:]] == [f"version_{one}" for one in rates[::-1]]
    best = {line.split()[0]: float(re.search(r"val_loss (\S+)", line)[1]) for line in lines[1:] if "val_loss" in line}
    order = [line.split()[0] for line in shown(capsys, "--sort", "best")[1:] if "val_loss" in line]
    assert order == sorted(best, key=best.__getitem__)
    assert "none of the 4 runs matches" in refused(capsys, "runs", "--dataset", "other")


@pytest.fixture
def made() -> None:
    """Runs 0 to 4, of which 1 has a name, and 3 is running: this process's parent trains it."""
    for number in range(5):
        folder = ROOT / f"version_{number}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / f"best-epoch1-val_loss={number % 3}.500000.ckpt").touch()
        (folder / "config.yaml").write_text("lr: 1\n" + ("run_name: kept\n" if number == 1 else ""))
    (ROOT / ".version_3.lock").mkdir()
    (ROOT / ".version_3.lock" / f"{socket.gethostname()}-elsewhere+1+1+").touch()


def left() -> list[int]:
    return sorted(int(path.name[8:]) for path in ROOT.glob("version_*"))


def test_runs_that_two_metrics_chose_are_sorted_by_one_of_them(train, capsys) -> None:
    for monitor in ("val_loss", "val_acc"):
        train("--max_epochs", 1, "--monitor", monitor)
    said = refused(capsys, "runs", "--sort", "best")
    assert "chosen by val_acc max and val_loss min: add --where monitor=val_acc" in said
    assert [line.split()[0] for line in shown(capsys, *said.split("add ")[1].split(), "--sort", "best")[1:]] == [
        "version_1"
    ]


def test_removed_is_what_was_asked_for_and_agreed_to(made, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    assert shown(capsys, "remove", "version_0")[-1].endswith("nothing is removed")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no terminal on which to ask" in refused(capsys, "runs", "remove", "version_0")
    assert "version_3 is running (process 1 on" in refused(capsys, "runs", "remove", "version_0", "version_3", "--yes")
    assert "name the runs to remove" in refused(capsys, "runs", "remove", "--yes")
    assert left() == [0, 1, 2, 3, 4]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert shown(capsys, "remove", "version_0", "kept")[-1] == "removed lightning_logs/version_1"
    assert left() == [2, 3, 4]


def test_pruned_are_the_oldest_or_the_worst_but_none_with_a_name_or_running(made, capsys) -> None:
    assert shown(capsys, "prune", "--keep", "2", "--yes", "--sort", "best")[0].startswith("version_1 stay")
    assert left() == [0, 1, 3]  # 0.5, a name, 0.5
    assert shown(capsys, "prune", "--keep", "0", "--yes")[-1] == "removed lightning_logs/version_0"
    assert left() == [1, 3]
