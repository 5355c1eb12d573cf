"""`--log_grad_norm`: logs the norm of the gradient of every optimizer step that is logged, before it is clipped."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from engine.logging import loggers


def callbacks(run_dir: Any, model: Any, data: Any, *, log_grad_norm: bool = False) -> list[Callback]:
    """log_grad_norm: log the 2-norm of the gradient of all parameters as grad_norm, every log_every_n_steps."""
    return [LogGradNorm()] if log_grad_norm else []


class LogGradNorm(Callback):
    """Logs `grad_norm` beside `train_loss_step`."""

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        if module.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            gradients = [one.grad for one in module.parameters() if one.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            loggers.log_now(trainer, {"grad_norm": float(norm)})
