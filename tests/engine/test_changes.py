"""What may change when a run goes on: it goes on as if it had been so from there, or says that it cannot."""

import csv
import math
from pathlib import Path
from typing import Any

import main
import pytest
import torch

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def column(name: str) -> list[float]:
    with (RUN / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def kept() -> dict[str, Any]:
    return torch.load(LAST, weights_only=True)


def resume(*argv: str | float) -> dict[str, float]:
    return main.main(["--ckpt_path", "last", *map(str, argv)])


def cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


# 72 items: 5 steps an epoch at 16 a batch, 3 at 32, 9 at 8. Two epochs are done; the rate of each step of the third.
RATES = {
    "--batch_size 32 --max_epochs 4": [cosine(epoch / 4) for epoch in (2, 7 / 3, 8 / 3)],
    "--batch_size 8 --max_epochs 4": [cosine((2 + step / 9) / 4) for step in range(9)],
    "--accumulate_grad_batches 2 --max_epochs 4": [cosine((2 + step / 3) / 4) for step in range(3)],
    "--max_epochs 3": [cosine((2 + step / 5) / 3) for step in range(5)],
    "--max_epochs 4 --max_steps 20": [cosine((10 + step) / 20) for step in range(5)],
    "--batch_size 32 --max_epochs -1 --max_steps 16": [cosine((2 + step / 3) / 4) for step in range(3)],
}


@pytest.mark.parametrize("change", RATES)
def test_the_rate_follows_the_share_of_training_that_is_done(train, change: str) -> None:
    argv = ["--batch_size", 16, "--lr", 1, "--optimizer", "SGD", "--log_every_n_steps", 1, "--logger", "csv"]
    train("--max_epochs", 2, *argv)
    resume(*change.split())
    assert column("lr")[10 : 10 + len(RATES[change])] == pytest.approx(RATES[change], abs=1e-6)
