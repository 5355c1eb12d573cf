"""Where the metrics go: what real TensorBoard answers, and loggers whose package is not there."""

import csv
import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any

import main
import pytest
from paths import TOYS
from pytorch_lightning.callbacks import LambdaCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUN = Path("lightning_logs/version_0")


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Real TensorBoard on a folder; its address."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    command += ["--load_fast", "false", "--reload_interval", "1"]  # without the wait of its other reader
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise RuntimeError(f"TensorBoard ended with {process.returncode}")
                try:
                    if ask(f"http://127.0.0.1:{port}", "scalars/tags"):
                        break
                except OSError:
                    pass
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def ask(address: str, path: str, text: bool = True, body: dict[str, Any] | None = None) -> Any:
    """What a plugin of TensorBoard answers."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{address}/data/plugin/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.loads(answer.read()) if text else answer.read()


@pytest.mark.slow
def test_tensorboard_shows_curves_flags_and_metrics(train) -> None:
    metrics = train("--max_epochs", 3, "--lr", 0.05, "--log_every_n_steps", 1)
    train("--max_epochs", 1, "--lr", 0.01)
    with tensorboard(RUN.parent) as address:
        shown = ask(address, "scalars/tags")["version_0"]
        logged = {name for name in metrics if not name.startswith("best_")}
        assert logged | {"lr", "train_loss_step"} <= shown.keys()
        curve = ask(address, "scalars/scalars?run=version_0&tag=val_loss")
        assert [step for _, step, _ in curve] == [2, 4, 6]
        assert curve[-1][2] == pytest.approx(metrics["val_loss"])
        states = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        page = {"startIndex": 0, "sliceSize": 10, "allowedStatuses": states, "colParams": []}
        columns = ask(address, "hparams/experiment", body={"experimentName": ""})
        assert "test_acc" in {one["name"]["tag"] for one in columns["metricInfos"]}
        wanted = [{"metric": one["name"], "includeInResult": True} for one in columns["metricInfos"]]
        wanted += [{"hparam": one["name"], "includeInResult": True} for one in columns["hparamInfos"]]
        groups = ask(address, "hparams/session_groups", body={**page, "colParams": wanted})["sessionGroups"]
        assert sorted(group["hparams"]["lr"] for group in groups) == [0.01, 0.05]
        [group] = [group for group in groups if group["hparams"]["lr"] == 0.05]
        assert group["hparams"]["dataset"] == "toys.Blobs"
        values = {one["name"]["tag"]: one["value"] for one in group["metricValues"]}
        assert values["test_acc"] == pytest.approx(metrics["test_acc"])
        said = ask(address, "text/text?run=version_0&tag=config%2Ftext_summary")
        assert len(said) == 1
        assert "lr: 0.05" in said[0]["text"]


@pytest.mark.parametrize("x_axis", ["epoch", "both", "step"])
def test_epochs_as_axis(train, x_axis: str) -> None:
    train("--max_epochs", 3, "--x_axis", x_axis, "--log_every_n_steps", 1)
    events = EventAccumulator(str(RUN)).Reload()
    found = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    rows = [row for row in csv.DictReader((RUN / "metrics.csv").read_text().splitlines()) if row["val_loss"]]
    over_epochs = [(int(row["epoch"]) + 1, pytest.approx(float(row["val_loss"]))) for row in rows]
    over_steps = [(int(row["step"]), pytest.approx(float(row["val_loss"]))) for row in rows]
    assert [epoch for epoch, _ in over_epochs] == [1, 2, 3]
    assert found.get("by_epoch/val_loss") == (None if x_axis == "step" else over_epochs)
    assert found.get("val_loss") == (None if x_axis == "epoch" else over_steps)
    assert ("train_acc" in found, "by_epoch/train_acc" in found) == (x_axis != "epoch", x_axis != "step")
    assert [step for step, _ in found["lr"]] == list(range(6))
    assert not [tag for tag in found if tag.startswith("by_epoch/") and ("step" in tag or "test" in tag)]


def test_what_a_run_repeats_is_shown_once(train) -> None:
    train("--max_epochs", 3, "--x_axis", "both", "--save_top_k", -1, "--run_name", "first")
    [early] = (RUN / "checkpoints").glob("best-epoch1-*")
    main.main(["--ckpt_path", str(early)])
    events = EventAccumulator(str(RUN / "first")).Reload()
    assert [one.step for one in events.Scalars("by_epoch/val_loss")] == [1, 2, 3]
    assert [one.step for one in events.Scalars("val_loss")] == [2, 4, 6]


def test_a_run_that_goes_on_tells_its_flags_once(train) -> None:
    train("--max_epochs", 1)
    main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    events = EventAccumulator(str(RUN)).Reload()
    assert len(events.Tensors("config/text_summary")) == 1
    assert len(list(RUN.glob("events.*"))) == 2  # nothing in a folder below
    assert not [path for path in RUN.iterdir() if path.is_dir() and path.name != "checkpoints"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_whose_package_is_missing(train, capsys: pytest.CaptureFixture[str], name: str) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(SystemExit, match="2"):
        train("--logger", "csv", name)
    said = capsys.readouterr().err
    assert f'--logger {name}: {name} is not installed: pip install -e ".[{name}]"' in said
    assert said.count("\n") == 1
    assert not Path("lightning_logs").exists()


def test_mlflow_keeps_the_run_in_its_folder_and_goes_on(train, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train("--max_epochs", 1, "--logger", "csv", "mlflow")
    metrics = main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    [file] = RUN.glob("mlruns/*/*/metrics/val_loss")
    values = [float(line.split()[1]) for line in file.read_text().splitlines()]
    assert len(values) == 2
    assert values[-1] == pytest.approx(metrics["val_loss"])


def threads_and_files() -> tuple[int, int]:
    """How many threads and open files this process has."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def test_many_runs_in_one_process_leave_nothing_behind() -> None:
    """No thread, open file, shared memory or handler of signals, and no trainer with its network and its data."""
    trainers: list[Any] = []

    def keep(trainer: Any, *_: Any) -> None:
        trainers.append(weakref.ref(trainer))

    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    left: list[tuple[int, int]] = []
    for number in range(5):
        argv = ["--max_epochs", "2", "--log_grad_norm", "--num_workers", str(2 * (number % 2))]
        main.main([*TOYS, *argv], [LambdaCallback(on_fit_start=keep)])
        gc.collect()
        left.append(threads_and_files())
        end = time.monotonic() + 20
        while number > 2 and left[-1] > left[-3] and time.monotonic() < end:  # workers take a moment to go
            time.sleep(0.1)
            left[-1] = threads_and_files()
    end = time.monotonic() + 20
    while any(trainer() for trainer in trainers) and time.monotonic() < end:  # a thread that ends may hold one
        time.sleep(0.1)
        gc.collect()
    assert left[3] <= left[1]  # with workers; the first one imports what it needs
    assert left[4] <= left[2]
    assert [trainer() for trainer in trainers] == [None] * 5
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers


def test_what_a_program_logs_by_itself_is_in_the_runs_folder() -> None:
    """Several curves in one figure are files of their own."""

    def log(trainer: Any, *_: Any) -> None:
        trainer.loggers[0].experiment.add_scalars("acc", {"a": 1.0, "b": 2.0}, 0)

    threads = threading.active_count()
    main.main([*TOYS, "--max_epochs", "1"], [LambdaCallback(on_train_start=log)])
    assert threading.active_count() == threads
    main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    assert EventAccumulator(str(RUN / "acc_a")).Reload().Scalars("acc")[0].value == 1
    assert len(list(RUN.glob("events.*"))) == 2


def test_no_logger_at_all(train) -> None:
    assert "test_acc" in train("--max_epochs", 1, "--logger", "[]")
    assert not (RUN / "metrics.csv").exists()


def test_a_flag_whose_bytes_are_no_text_is_logged_and_kept(train) -> None:
    train("--max_epochs", 1, "--notes", "a\udcffb", "--logger", "tensorboard", "csv")
    assert main.parse(["test", "--ckpt_path", "last"]).flags["notes"] == "a\udcffb"
    main.main(["test", "--ckpt_path", "last"])
