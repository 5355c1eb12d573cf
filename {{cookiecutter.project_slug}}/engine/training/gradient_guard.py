"""GradientGuard: stops or skips a step whose gradient is NaN or infinite."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy, ParallelStrategy
from torch import Tensor, nn

from engine.lightning_compat import all_finite, skip_unless_finite
from engine.logging import loggers


class _GpuCheck(NamedTuple):
    """The check of a step on a GPU that may not be through it yet."""

    is_bad: Tensor  # (parameters,)
    any_is_bad: Tensor  # (), in pinned memory
    copied: torch.cuda.Event
    parameters: list[nn.Parameter]
    batch: Any
    place: tuple[int, int, int]


class GradientGuard(Callback):
    """Checks the gradients before every optimizer step.

    On a GPU, a fused optimizer leaves the weights as they are by itself, and what was found is read before the next
    step, so that no step waits for the GPU.

    The latest batch (of rank 0) and the weights are saved as bad_step_N.pt in the run folder, for `torch.load`.
    16-mixed precision is not checked: its gradient scaler expects infinite gradients.

    bad_steps: "stop", or "skip": leave the weights as they are and count.

    Raises: FloatingPointError: a gradient is NaN or infinite; names step, epoch, batch and parameters.
    """

    state_key = "Guard"  # its name in checkpoints of earlier versions

    def __init__(self, run_dir: Path, bad_steps: Literal["stop", "skip"] = "stop") -> None:
        self.run_dir, self.bad_steps, self.skipped = run_dir, bad_steps, 0
        self._batch: Any = None
        self._on_gpu: _GpuCheck | None = None

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self._read_gpu_check(trainer, module)
        if trainer.precision == "16-mixed":
            return
        parameters = [one for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        gradients = [one.grad for one in parameters]
        place = trainer.global_step, trainer.current_epoch + 1, trainer.fit_loop.batch_idx
        if not _is_sharded(trainer) and (is_bad := skip_unless_finite(optimizer, gradients)) is not None:
            any_is_bad = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(is_bad.any(), non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._on_gpu = _GpuCheck(is_bad, any_is_bad, copied, parameters, self._batch, place)
        elif any(_any_rank(trainer, [not all_finite(gradients)])):
            named = list(module.named_parameters())
            flags = _any_rank(trainer, [p.grad is not None and not all_finite([p.grad]) for _, p in named])
            bad = [name for (name, _), is_bad in zip(named, flags, strict=True) if is_bad]
            self._handle(trainer, module, bad, self._batch, place)
            for one in parameters:
                one.grad = None

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._read_gpu_check(trainer, module)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read_gpu_check(trainer, module)
        checkpoint["callbacks"][self.state_key] = self.state_dict()  # Lightning has asked for it before

    def _read_gpu_check(self, trainer: Trainer, module: LightningModule) -> None:
        check, self._on_gpu = self._on_gpu, None
        if check is None:
            return
        check.copied.synchronize()
        if check.any_is_bad:
            bad = {id(one) for one, is_bad in zip(check.parameters, check.is_bad.tolist(), strict=True) if is_bad}
            names = [name for name, one in module.named_parameters() if id(one) in bad]
            self._handle(trainer, module, names, check.batch, check.place)

    def _handle(
        self, trainer: Trainer, module: LightningModule, bad: list[str], batch: Any, place: tuple[int, int, int]
    ) -> None:
        """Stops or counts. bad: names of parameters. place: step, epoch (from 1) and batch of the gradient."""
        path = self.run_dir / f"bad_step_{place[0]}.pt"
        if trainer.is_global_zero and not self.skipped:
            weights = {} if _is_sharded(trainer) else module.state_dict()  # no process has them all
            torch.save({"batch": batch, "state_dict": weights}, path)
        names = (", ".join(bad[:3]) or "its norm") + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        problem = "step {} (epoch {}, batch {}): the gradient is NaN or infinite in ".format(*place) + names
        if self.bad_steps == "stop":
            problem += _not_finite(module, batch)
            raise FloatingPointError(f"{problem}. The weights are unchanged; the batch and the weights are in {path}")
        self.skipped += 1
        loggers.log_now(trainer, {"skipped_steps": self.skipped})

    def state_dict(self) -> dict[str, int]:
        """The number of steps skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]


def _not_finite(module: Any, batch: Any) -> str:
    """Says how many inputs and targets of a batch are NaN or infinite, where MInterface takes it apart; or ""."""
    fields, said = None if getattr(module, "has_own_step", True) else module.batch_fields(batch), ""
    for name, values in {"inputs": fields[:2], "target": fields.target}.items() if fields else ():
        apply_to_collection(values, Tensor, (found := list[Tensor]()).append, allow_frozen=True)
        number = sum(int((~one.isfinite()).sum()) for one in found)
        said += f"; {number:,} values of the batch's {name} are NaN or infinite" if number else ""
    return said


def _is_sharded(trainer: Trainer) -> bool:
    """Whether each process holds a shard of every gradient only."""
    return isinstance(trainer.strategy, ParallelStrategy) and not isinstance(trainer.strategy, DDPStrategy)


def _any_rank(trainer: Trainer, bad: list[bool]) -> list[bool]:
    """Each flag, or-ed over all processes where gradients are sharded."""
    if not _is_sharded(trainer):
        return bad
    flags = torch.tensor(bad, dtype=torch.int, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(flags, reduce_op="max").bool().tolist()  # type: ignore[union-attr]
