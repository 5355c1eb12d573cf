"""Stops before a loss or gradient that is no number can spoil the weights."""

from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy, ParallelStrategy

from engine.lightning_compat import all_finite


class GradientGuard(Callback):
    """Looks at the gradients of every optimiser step before it changes the weights.

    The batch that went in last (on rank 0) and the weights are saved as bad_step_N.pt in the run folder, for a look
    with `torch.load`.
    Mixed precision with a gradient scaler (16-mixed) is left alone: there, infinite gradients are part of the method.

    bad_steps: "stop", or "skip": leave the weights as they are and count.

    Raises:
        FloatingPointError: a gradient is NaN or infinite; names step, epoch, batch and parameters.
    """

    state_key = "Guard"  # as checkpoints have it

    def __init__(self, folder: Path, bad_steps: Literal["stop", "skip"] = "stop") -> None:
        self.folder, self.bad_steps, self.skipped = folder, bad_steps, 0
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        if trainer.precision == "16-mixed" or not any(_anywhere(trainer, [not all_finite(gradients)])):
            return
        named = list(module.named_parameters())
        found = _anywhere(trainer, [one.grad is not None and not all_finite([one.grad]) for _, one in named])
        bad = [name for (name, _), one in zip(named, found, strict=True) if one]
        place = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx})"
        path = self.folder / f"bad_step_{trainer.global_step}.pt"
        if trainer.is_global_zero and not self.skipped:
            weights = {} if _shared(trainer) else module.state_dict()  # no process has them all
            torch.save({"batch": self._batch, "state_dict": weights}, path)
        said = f"{place}: the gradient is NaN or infinite in {', '.join(bad[:3]) or 'its norm'}"
        said += f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        if self.bad_steps == "stop":
            raise FloatingPointError(f"{said}. The weights are unchanged; the batch and the weights are in {path}")
        self.skipped += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        module.log_now({"skipped_steps": self.skipped})  # type: ignore[operator]

    def state_dict(self) -> dict[str, int]:
        """How many steps were skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]


def _shared(trainer: Trainer) -> bool:
    """Whether each process has a part of every gradient, so that one may see what the others do not."""
    return isinstance(trainer.strategy, ParallelStrategy) and not isinstance(trainer.strategy, DDPStrategy)


def _anywhere(trainer: Trainer, bad: list[bool]) -> list[bool]:
    """What any process has found, where each has looked at its own part."""
    if not _shared(trainer):
        return bad
    told = torch.tensor(bad, dtype=torch.int, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(told, reduce_op="max").bool().tolist()  # type: ignore[union-attr]
