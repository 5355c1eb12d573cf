"""GradientGuard: stops or skips a step whose gradient is NaN or infinite."""

from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy, ParallelStrategy

from engine.lightning_compat import all_finite
from engine.logging import loggers


class GradientGuard(Callback):
    """Checks the gradients before every optimizer step.

    The latest batch (of rank 0) and the weights are saved as bad_step_N.pt in the run folder, for `torch.load`.
    16-mixed precision is not checked: its gradient scaler expects infinite gradients.

    bad_steps: "stop", or "skip": leave the weights as they are and count.

    Raises:
        FloatingPointError: a gradient is NaN or infinite; names step, epoch, batch and parameters.
    """

    state_key = "Guard"  # its name in checkpoints of earlier versions

    def __init__(self, run_dir: Path, bad_steps: Literal["stop", "skip"] = "stop") -> None:
        self.run_dir, self.bad_steps, self.skipped = run_dir, bad_steps, 0
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        if trainer.precision == "16-mixed" or not any(_any_rank(trainer, [not all_finite(gradients)])):
            return
        named = list(module.named_parameters())
        flags = _any_rank(trainer, [p.grad is not None and not all_finite([p.grad]) for _, p in named])
        bad = [name for (name, _), is_bad in zip(named, flags, strict=True) if is_bad]
        place = f"step {trainer.global_step} (epoch {trainer.current_epoch + 1}, batch {trainer.fit_loop.batch_idx})"
        path = self.run_dir / f"bad_step_{trainer.global_step}.pt"
        if trainer.is_global_zero and not self.skipped:
            weights = {} if _is_sharded(trainer) else module.state_dict()  # no process has them all
            torch.save({"batch": self._batch, "state_dict": weights}, path)
        problem = f"{place}: the gradient is NaN or infinite in {', '.join(bad[:3]) or 'its norm'}"
        problem += f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        if self.bad_steps == "stop":
            raise FloatingPointError(f"{problem}. The weights are unchanged; the batch and the weights are in {path}")
        self.skipped += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        loggers.log_now(trainer, {"skipped_steps": self.skipped})

    def state_dict(self) -> dict[str, int]:
        """The number of steps skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]


def _is_sharded(trainer: Trainer) -> bool:
    """Whether each process holds a shard of every gradient only."""
    return isinstance(trainer.strategy, ParallelStrategy) and not isinstance(trainer.strategy, DDPStrategy)


def _any_rank(trainer: Trainer, bad: list[bool]) -> list[bool]:
    """Each flag, or-ed over all processes where gradients are sharded."""
    if not _is_sharded(trainer):
        return bad
    flags = torch.tensor(bad, dtype=torch.int, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(flags, reduce_op="max").bool().tolist()  # type: ignore[union-attr]
