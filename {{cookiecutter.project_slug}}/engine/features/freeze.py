"""`--freeze`: parts of the network that do not learn, for good or for the first epochs."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError
from engine.lightning_compat import batch_norm_class
from engine.training.optimizers import matching_parameters

_Norm = batch_norm_class()


def callbacks(
    folder: Any, model: Any, data: Any, *, freeze: tuple[str, ...] = (), unfreeze_epoch: int | None = None
) -> list[Callback]:
    """Which parts stay as they are.

    Args:
        freeze: parts of the network (backbone) or patterns of parameter names (*.bias) that do not learn.
        unfreeze_epoch: the epoch, from 0, with which they begin to learn after all.
    """
    if unfreeze_epoch is not None and not freeze:
        raise UsageError("--unfreeze_epoch needs --freeze: what is frozen until then?")
    return [Freeze(freeze, unfreeze_epoch)] if freeze else []


class Freeze(Callback):
    """Keeps parameters as they are; the batch norms among them keep their statistics too.

    For good, they take no gradient at all. Until an epoch, their gradients are dropped before each step: every
    process then knows them from the start, as DDP wants it.
    """

    changes_parameters = changes_step = True  # `plan` counts and times with it

    def __init__(self, patterns: tuple[str, ...], until: int | None) -> None:
        self.patterns, self.until = patterns, until
        self.names: set[str] = set()

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.names = {name for pattern in self.patterns for name in matching_parameters(module, pattern, "freeze")}
        if self.until is None:
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name not in self.names)
            if not any(parameter.requires_grad for parameter in module.parameters()):
                raise UsageError(f"--freeze {' '.join(self.patterns)} leaves nothing to learn")

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        for name, layer in module.named_modules():
            if isinstance(layer, _Norm) and f"{name}.weight" in self.names:
                layer.train(self._over(trainer))

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        if self.until is not None and not self._over(trainer):
            for name, parameter in module.named_parameters():
                if name in self.names:
                    parameter.grad = None

    def _over(self, trainer: Trainer) -> bool:
        return self.until is not None and trainer.current_epoch >= self.until
