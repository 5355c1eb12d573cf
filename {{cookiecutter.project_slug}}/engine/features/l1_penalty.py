"""`--l1`: an L1 penalty on the weights, which drives many of them to 0 (Tibshirani, "The lasso", 1996)."""

from typing import Annotated, Any

from pytorch_lightning.callbacks import LambdaCallback


def callbacks(*, l1: Annotated[float, ">= 0"] = 0.0) -> list[LambdaCallback]:
    """l1: factor of the sum of absolute weights that is added to the loss (not to the logged one)."""

    def add_gradient(trainer: Any, module: Any, optimizer: Any) -> None:
        for parameter in module.parameters():
            if parameter.grad is not None and parameter.dim() > 1:  # not biases and norm weights
                parameter.grad.add_(parameter.detach().sign(), alpha=l1)

    return [LambdaCallback(on_before_optimizer_step=add_gradient)] if l1 else []
