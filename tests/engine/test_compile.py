"""`--compile`: the same numbers."""

import main
import pytest


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_and_goes_on(train) -> None:
    argv = ["--batch_size", 8, "--max_epochs", 4, "--dropout", 0, "--noise", 0]
    compiled = train(*argv, "--compile")
    assert compiled == pytest.approx(train(*argv), abs=1e-4)
    on = main.main(["--ckpt_path", "lightning_logs/version_0", "--max_epochs", "5"])
    assert on["train_loss"] < compiled["train_loss"]
