"""`--throughput`, `--monitor_device`."""

import csv
from pathlib import Path

import main
import pytest

RUN = Path("lightning_logs/version_0")


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader((RUN / "metrics.csv").read_text().splitlines()))


def test_the_throughput_of_each_epoch_is_logged_once(train) -> None:
    train("--throughput", "--max_epochs", 2, "--val_check_interval", 0.5, "--batch_size", 8)
    main.main(["--ckpt_path", "last", "--max_epochs", "4"])
    found = [(int(row["epoch"]), float(row["items_per_second"])) for row in rows() if row["items_per_second"]]
    assert [epoch for epoch, _ in found] == [0, 1, 2, 3]
    assert all(speed > 0 for _, speed in found)


def test_the_device_is_watched_where_the_loss_is_logged(train) -> None:
    pytest.importorskip("psutil")
    train("--monitor_device", "--max_epochs", 2, "--batch_size", 8, "--log_every_n_steps", 5)
    name = "DeviceStats.on_train_batch_end/cpu_percent"
    assert [int(row["step"]) for row in rows() if row[name]] == [4, 9, 14]


def test_without_a_logger_there_is_nowhere_to_log_to(train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--monitor_device", "--logger", "[]", "--max_epochs", 1)
    assert "--monitor_device needs a logger" in capsys.readouterr().err
