"""`--l1`: an L1 penalty on the weights, which drives many of them to 0 (Tibshirani, "The lasso", 1996)."""

from typing import Annotated, Any

from pytorch_lightning import Callback, LightningModule, Trainer


def callbacks(run_dir: Any, model: Any, data: Any, *, l1: Annotated[float, ">= 0"] = 0.0) -> list[Callback]:
    """l1: factor of the sum of absolute weights that is added to the loss (not to the logged one)."""
    return [L1Penalty(l1)] if l1 else []


class L1Penalty(Callback):
    """Adds the gradient of the penalty, l1 * sign(weight), before each optimizer step; not to biases and norms."""

    def __init__(self, l1: float) -> None:
        self.l1 = l1

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        for parameter in module.parameters():
            if parameter.grad is not None and parameter.dim() > 1:
                parameter.grad.add_(parameter.detach().sign(), alpha=self.l1)
