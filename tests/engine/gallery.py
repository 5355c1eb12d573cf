"""What every example of the gallery has to stand. Each check takes the flags of a command line, without a value of
`--max_epochs`, and leaves lightning_logs/version_0, the run that nothing interrupted."""

from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from test_resume import everything, same

RUN = Path("lightning_logs/version_0")
QUICK = ["--accelerator", "cpu", "--num_workers", "0", "--pictures", "false"]


class Halt(Exception):
    """What stands for a kill."""


class HaltAt(Callback):
    """Ends the run before the batch of that number."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise Halt


def goes_on(*flags: str, epochs: int = 2, batch: int = 3) -> dict[str, float]:
    """A run that was cut off within an epoch goes on and ends as the one that was not, bit for bit."""
    argv = [*QUICK, *flags, "--max_epochs", str(epochs), "--every_n_train_steps", "1"]
    metrics = main.main(argv)
    with pytest.raises(Halt):
        main.main(argv, [HaltAt(batch)])
    assert main.main(["--ckpt_path", "version_1"]) == metrics
    same(everything(Path("lightning_logs/version_1")), everything(RUN))
    return metrics


def predicts(*flags: str) -> np.ndarray:
    """What `predict` writes for the test part of that run, (items, ...)."""
    main.main(["predict", "--ckpt_path", "version_0", "--format", "npy", *flags])
    return np.load(max(RUN.glob("predictions*.npy"), key=lambda path: path.stat().st_mtime_ns))


def exports(format: str = "pt2") -> Any:
    """What `export` writes of that run: a callable from inputs to outputs. It is checked by `export` itself."""
    main.main(["export", "--ckpt_path", "version_0", "--format", format])
    return torch.export.load(RUN / "network.pt2").module() if format == "pt2" else None
