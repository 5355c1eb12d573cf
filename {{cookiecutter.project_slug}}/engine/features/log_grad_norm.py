"""`--log_grad_norm`: logs the norm of the gradient of every optimizer step that is logged, before it is clipped."""

from typing import Any

import torch
from pytorch_lightning.callbacks import LambdaCallback

from engine.logging import loggers


def callbacks(*, log_grad_norm: bool = False) -> list[LambdaCallback]:
    """log_grad_norm: log the 2-norm of the gradient of all parameters as grad_norm, every log_every_n_steps."""

    def log(trainer: Any, module: Any, optimizer: Any) -> None:
        if module.global_step % trainer.log_every_n_steps == 0:
            gradients = [one.grad for one in module.parameters() if one.grad is not None]
            loggers.log_now(trainer, {"grad_norm": float(torch.nn.utils.get_total_norm(gradients))})

    return [LambdaCallback(on_before_optimizer_step=log)] if log_grad_norm else []
