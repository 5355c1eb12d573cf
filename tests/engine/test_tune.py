"""`tune`: what it prints and draws, and that it changes nothing."""

from pathlib import Path

import main
import pytest
from paths import TOYS

RUN = Path("lightning_logs/version_0")


def test_the_rate_is_searched_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    main.main(["tune", *TOYS])
    said = capfd.readouterr()
    assert said.err == ""
    _, hint, path = said.out.splitlines()
    assert 1e-3 < float(hint.split("--lr ")[1].split(":")[0]) <= 1  # 100 steps although an epoch has two
    assert path == f"{RUN}/lr_find.png"
    assert sorted(one.name for one in RUN.iterdir()) == ["config.yaml", "lr_find.png"]
    assert [one.name for one in Path().iterdir() if one.name != "lightning_logs"] == []


def test_the_batch_size_is_searched_up_to_the_size_of_the_data(capfd: pytest.CaptureFixture[str]) -> None:
    main.main(["tune", *TOYS, "--what", "batch_size", "lr"])
    said = capfd.readouterr()
    sizes = [int(line.split()[1]) for line in said.out.splitlines() if line.startswith("--batch_size")]
    assert sizes == [8, 16, 32, 64, 72][: len(sizes)]
    assert len(sizes) >= 3
    assert f"{RUN}/batch_size.png" in said.out.splitlines()
    assert said.err == ""
    assert sorted(one.name for one in RUN.iterdir()) == ["batch_size.png", "config.yaml", "lr_find.png"]


def test_what_tune_kept_is_no_hindrance_to_training(train) -> None:
    main.main(["tune", *TOYS])
    assert "test_acc" in main.main(["--config", str(RUN / "config.yaml"), "--max_epochs", "1"])


def test_it_says_what_it_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"--fast_dev_run": "takes no --fast_dev_run", "--what=size": "is not any of lr, batch_size"}
    for flag, why in wrong.items():
        with pytest.raises(SystemExit, match="2"):
            main.main(["tune", *TOYS, flag])
        assert why in capsys.readouterr().err
