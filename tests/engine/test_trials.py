"""Trying a run out: --fast_dev_run, --overfit_batches, --profiler."""

from pathlib import Path

import main
import pytest

RUN = Path("lightning_logs/version_0")


def test_a_rehearsal_leaves_nothing_and_breaks_nothing(train) -> None:
    assert "test_acc" in train("--fast_dev_run")
    assert list(Path().iterdir()) == []
    train("--max_epochs", 1)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    main.main(["--ckpt_path", "last", "--max_epochs", "3", "--fast_dev_run", "2"])
    main.main(["predict", "--ckpt_path", "last", "--fast_dev_run", "true"])
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_few_batches_can_be_learned_by_heart(train) -> None:
    metrics = train("--overfit_batches", 1, "--batch_size", 8, "--max_epochs", 60, "--lr", 0.05, "--noise", 0)
    assert metrics["train_acc"] == 1.0


@pytest.mark.parametrize(
    ("name", "says"), [("simple", "run_training_epoch"), ("advanced", "cumtime"), ("pytorch", "Self CPU time total")]
)
@pytest.mark.filterwarnings("default")  # Lightning's, about few steps
def test_profilers_report_to_the_run_folder(train, capfd: pytest.CaptureFixture[str], name: str, says: str) -> None:
    train("--profiler", name, "--max_epochs", 2, "--batch_size", 8)
    assert says in (RUN / "fit-profile.txt").read_text()
    assert len(capfd.readouterr().out.splitlines()) <= 12


def test_without_it_nothing_is_profiled(train) -> None:
    train("--max_epochs", 1)
    assert not list(RUN.glob("*profile*"))
