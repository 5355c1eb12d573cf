"""Stops before a loss or gradient that is no number can spoil the weights."""

from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class Guard(Callback):
    """Looks at the gradients of every optimiser step before it changes the weights.

    The batch that went in last (on rank 0) and the weights are saved as bad_step_N.pt in the run folder, for a look
    with `torch.load`.
    Mixed precision with a gradient scaler (16-mixed) is left alone: there, infinite gradients are part of the method.

    bad_steps: "stop", or "skip": leave the weights as they are and count.

    Raises:
        FloatingPointError: a gradient is NaN or infinite; names step, epoch, batch and parameters.
    """

    def __init__(self, folder: Path, bad_steps: Literal["stop", "skip"] = "stop") -> None:
        self.folder, self.bad_steps, self.skipped = folder, bad_steps, 0
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        if trainer.precision == "16-mixed" or not gradients or _everywhere(trainer, _finite(_local(gradients))):
            return
        named = [(name, one) for name, one in module.named_parameters() if one.grad is not None]
        bad = [name for name, one in named if not _everywhere(trainer, bool(_local([one.grad])[0].isfinite().all()))]
        place = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx})"
        path = self.folder / f"bad_step_{trainer.global_step}.pt"
        if trainer.is_global_zero and not self.skipped:
            weights = {} if _sharded(trainer) else module.state_dict()  # no process has them all
            torch.save({"batch": self._batch, "state_dict": weights}, path)
        said = f"{place}: the gradient is NaN or infinite in {', '.join(bad[:3]) or 'its norm'}"
        said += f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        if self.bad_steps == "stop":
            raise FloatingPointError(f"{said}. The weights are unchanged; the batch and the weights are in {path}")
        self.skipped += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        module.record({"skipped_steps": self.skipped})  # type: ignore[operator]

    def state_dict(self) -> dict[str, int]:
        """How many steps were skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]


def _sharded(trainer: Trainer) -> bool:
    """Whether each process has a part of every gradient, so that one may see what the others do not."""
    return getattr(trainer.lightning_module, "device_mesh", None) is not None


def _everywhere(trainer: Trainer, good: bool) -> bool:
    return trainer.strategy.reduce_boolean_decision(good, all=True) if _sharded(trainer) else good


def _local(gradients: list[Any]) -> list[torch.Tensor]:
    """This process's part of each."""
    return [one.to_local() if hasattr(one, "to_local") else one for one in gradients]


def _finite(gradients: list[torch.Tensor]) -> bool:
    """Whether all numbers are finite, in a third of the time of `torch.nn.utils.get_total_norm`."""
    found = torch.zeros((), device=gradients[0].device)
    try:  # as torch's gradient scaler looks; it multiplies by 1
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, torch.ones_like(found))
        return not found.item()
    except RuntimeError:  # on several devices, or of several types
        return bool(torch.nn.utils.get_total_norm(gradients).isfinite())
