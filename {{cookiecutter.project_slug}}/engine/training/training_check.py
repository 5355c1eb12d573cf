"""TrainingCheck: stops a run whose steps train nothing; and why a loss has no gradient."""

import inspect
import traceback
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from torchmetrics import Metric

from engine.errors import UsageError, is_own_file
from engine.lightning_compat import non_persistent_buffers

NO_GRADIENT = "of tensors does not require grad"  # torch's words for a result without a graph


class TrainingCheck(Callback):
    """Checks after an epoch that there were optimizer steps, with gradients, and that the schedule has moved.

    Says what training changes in a network and no checkpoint keeps, such as a counter.

    Raises: UsageError: no step was taken, or none had a gradient.
    """

    def __init__(self) -> None:
        self._steps, self._trains = 0, False
        self._unsaved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._unsaved = _unsaved_values(module)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._unsaved is None:
            return
        before, now = self._unsaved, _unsaved_values(module)
        if changed := [name for name, value in now.items() if not _equal(before.get(name), value)]:
            self._unsaved = None  # it is said once
            names = f"{', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}"
            keeps = "where a step goes on from what the one before left in it, self.register_buffer keeps it"
            rank_zero_only(print)(f"training changes {names}, which no checkpoint has: {keeps}", flush=True)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self._steps += 1
        if not self._trains:
            weights = (one for group in optimizer.param_groups for one in group["params"])
            self._trains = any(one.grad is not None for one in weights)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        step, manual = f"{type(module).__name__}.training_step", not module.automatic_optimization
        groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
        weights = {id(one) for group in groups for one in group["params"]}
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


def _unsaved_values(module: LightningModule) -> dict[str, Any]:
    """The numbers and small tensors of a network, by name, that its state_dict leaves out.

    Not those that torch computes from parameters, as by weight_norm (`weight_g`) and pruning (`weight_orig`).
    """
    found: dict[str, Any] = {}
    for path, one in module.named_modules():
        if is_system := isinstance(one, LightningModule):
            keeps = is_own_file(inspect.unwrap(type(one).on_save_checkpoint).__code__.co_filename)
        else:
            keeps = isinstance(one, Metric) or type(one).get_extra_state is not torch.nn.Module.get_extra_state
        if keeps:
            continue
        for key, value in (vars(one) | {key: getattr(one, key) for key in non_persistent_buffers(one)}).items():
            name = f"{path}.{key}".removeprefix(".").removeprefix("network.")
            if is_system and (key.startswith("_") or key == "last_output"):  # Lightning's and ours
                continue
            if type(value) in (int, float):
                found[name] = value
            elif isinstance(value, torch.Tensor) and not value.requires_grad:  # one with a graph is of this step alone
                is_computed = {f"{key}_g", f"{key}_orig"} & {name for name, _ in one.named_parameters(recurse=False)}
                if value.layout == torch.strided and value.numel() <= 2**16 and not is_computed:
                    found[name] = value.clone()
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())  # NaN too
    return type(one) is type(other) and one == other


def explain_missing_gradient(error: RuntimeError, model: Any, data: Any) -> None:
    """Adds to torch's error that there is no gradient what to do about it, where a line of the user's raised it.

    Raises:
        UsageError: none did: what the network or the loss returns cannot be trained.
    """
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    steps = [code.co_name for code in frames if code.co_name in ("validation_step", "test_step", "predict_step")]
    if steps:
        hint = "what takes gradients belongs in `with torch.enable_grad():`"
        error.add_note(f"{steps[0]} runs under torch.no_grad(): {hint}")
        return
    if any(parameter.requires_grad for parameter in model.parameters()):
        hint = "it may be computed under torch.no_grad(), or by .detach() or argmax"
        reason = f"{_without_gradient(model, data)}: {hint}"
    else:
        reason = f"{type(model).__name__} has no parameter that requires a gradient"
    if not any(is_own_file(code.co_filename) for code in frames):
        raise UsageError(f"nothing is trained: {reason}") from error
    error.add_note(f"nothing is trained: {reason}")


def _without_gradient(model: Any, data: Any) -> str:
    """Names what has no gradient: of a network that MInterface trains, its output or its loss."""
    sample = data.sample()
    if getattr(model, "has_own_step", True) or sample is None:
        return f"the loss of {type(model).__name__}.training_step has no gradient"
    fields, tracked = model.batch_fields(sample), list[bool]()
    with torch.enable_grad():
        output = model(*fields.args, **fields.kwargs, **fields.to_forward)
    apply_to_collection(output, torch.Tensor, lambda one: tracked.append(one.requires_grad))
    network = type(model if model.network is None else model.network).__name__
    if not any(tracked):
        return f"the output of {network}.forward has no gradient"
    loss = f"the loss of {network}" if fields.to_forward else f"--loss {model.loss_name}"
    return f"{loss} has no gradient"
