"""The learning rate over the run: a factor of `lr` that is a pure function of the optimiser's step; and plateau."""

import math
from functools import partial
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from engine.discovery import UsageError


def factor(step: int, name: str, total: float, warmup: int) -> float:
    """The share of `lr` in 0..1 at an optimiser step.

    name: "constant"; "linear", down to 0; "cosine", half a cosine down to 0 (Loshchilov and Hutter, SGDR, 2017).
    total: steps of the whole run.
    warmup: steps over which the rate first climbs, evenly, to `lr`.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if name not in ("linear", "cosine"):
        return 1.0
    done = min(1.0, (step - warmup) / max(1.0, total - warmup))
    return 1.0 - done if name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def load(name: str, optimizer: Optimizer, total: float, warmup: int) -> dict[str, Any] | None:
    """Lightning's `lr_scheduler` entry, or None where the rate stays as it is.

    Raises:
        UsageError: the warm-up is longer than the run, or the run has no end to plan for.
    """
    total = total if total >= 0 else math.inf  # Lightning's -1: a stream without a length
    if warmup >= total:
        raise UsageError(f"--warmup_steps {warmup} should be less than the {total:.0f} steps of the run")
    if name == "plateau" and warmup:
        raise UsageError("--lr_scheduler plateau takes no --warmup_steps")
    if name in ("constant", "plateau") and not warmup:
        return None
    if math.isinf(total) and name in ("linear", "cosine"):
        raise UsageError(
            f"--lr_scheduler {name} needs an end to plan for: give --max_epochs or --max_steps, or take "
            "--lr_scheduler constant"
        )
    scheduler = LambdaLR(optimizer, partial(factor, name=name, total=total, warmup=warmup))
    return {"scheduler": scheduler, "interval": "step"}


class Plateau(Callback):
    """Divides the rate by 10 when `val_loss` has not got better for 3 validations.

    A callback, because Lightning steps such a schedule after the epoch's checkpoint is written, and a resumed run
    would miss that step.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.limit_val_batches == 0:
            raise UsageError("--lr_scheduler plateau follows val_loss, and this run has no validation")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        scheduler = ReduceLROnPlateau(trainer.optimizers[0], factor=0.1, patience=3)
        scheduler.load_state_dict(self.state)
        scheduler.step(float(trainer.callback_metrics["val_loss"]))
        self.state = scheduler.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The best loss so far and how long it has stood."""
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.state = state
