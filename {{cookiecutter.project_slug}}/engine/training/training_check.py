"""TrainingCheck: stops a run whose steps train nothing."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError


class TrainingCheck(Callback):
    """Looks after an epoch whether there were optimizer steps, with gradients, and a schedule that moves.

    Raises:
        UsageError: no step was taken, or none had a gradient.
    """

    def __init__(self) -> None:
        self._steps, self._trains = 0, False

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self._steps += 1
        if not self._trains:
            weights = (one for group in optimizer.param_groups for one in group["params"])
            self._trains = any(one.grad is not None for one in weights)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        step, manual = f"{type(module).__name__}.training_step", not module.automatic_optimization
        weights = {
            id(one) for optimizer in trainer.optimizers for group in optimizer.param_groups for one in group["params"]
        }
        if not any(id(one) in weights for one in module.parameters()):
            return  # it has no optimizer, on purpose
        if manual and not trainer.global_step:
            calls = "self.manual_backward(loss) and self.optimizers().step()"
            raise UsageError(f"nothing is trained: automatic_optimization is False, and {step} never calls {calls}")
        if self._steps and not self._trains:
            does = "calls no self.manual_backward(loss)" if manual else "returns no loss"
            raise UsageError(f"nothing is trained: no step of the epoch has a gradient, for {step} {does}")
        idle = [one for one in trainer.lr_scheduler_configs if not getattr(one.scheduler, "last_epoch", 1)]
        if manual and idle and trainer.current_epoch == 1 and trainer.is_global_zero:
            print(f"the learning rate does not change: {step} never calls self.lr_schedulers().step()", flush=True)
