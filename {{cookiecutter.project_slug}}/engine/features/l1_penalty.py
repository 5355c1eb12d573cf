"""`--l1`: pulls every weight towards 0 by a constant force, so that many end there (Tibshirani, "The lasso", 1996)."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


def callbacks(folder: Any, model: Any, data: Any, *, l1: float = 0.0) -> list[Callback]:
    """l1: times the sum of the sizes of all weights is added to what is made small (not to the logged loss)."""
    return [L1(l1)] if l1 else []


class L1(Callback):
    """Adds the penalty's gradient, l1 * sign(weight), before the optimiser steps; biases and norms are let be."""

    def __init__(self, l1: float) -> None:
        self.l1 = l1

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        for parameter in module.parameters():
            if parameter.grad is not None and parameter.dim() > 1:
                parameter.grad.add_(parameter.detach().sign(), alpha=self.l1)
