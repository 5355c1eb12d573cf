"""The loss: of torch.nn.functional by its name, a function or class of one's own, or what a network returns."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.cli import discovery
from engine.errors import UsageError, simplify

# Losses that apply an activation of their own, and what to do about a sigmoid or softmax before them.
_WITH_ACTIVATION = {
    "cross_entropy": "leave it out",
    "binary_cross_entropy_with_logits": "leave it out, or give --loss binary_cross_entropy",
    "nll_loss": "it takes those of a log_softmax",
}
_VIEWS = ("View", "UnsafeView", "Squeeze", "Unsqueeze", "Permute", "Transpose", "Slice", "Select", "ToCopy", "Clone")
OVER_CLASSES = ("cross_entropy", "nll_loss", "multi_margin_loss")
_SAME_SHAPE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")  # torch would broadcast these
_FUNCTIONS = {simplify(name): name for name in dir(functional)} | {"crossentropyloss": "cross_entropy"}
_FUNCTIONS |= {"bceloss": "binary_cross_entropy", "bcewithlogitsloss": "binary_cross_entropy_with_logits"}


def functional_name(name: str) -> str:
    """The name in torch.nn.functional of one of torch's losses, such as torch.nn.MSELoss; any other name as it is."""
    short = name.rpartition(".")[2]
    return _FUNCTIONS.get(simplify(short), short) if name.startswith("torch.nn.") else name


def build(name: str, options: dict[str, Any]) -> Callable[..., Any]:
    """The loss of that name, (output, target) -> mean; a class gives a module, which may have weights of its own.

    options: further arguments of the function, or of the constructor, such as `label_smoothing`.
    """
    function = discovery.find("model", name).load() if "." in name else getattr(functional, name)
    if isinstance(function, type):
        function = function(**options)
    elif options:
        function = partial(function, **options)
    if functional_name(name) in _SAME_SHAPE:
        return partial(_check_shape, name, function)
    return function


def _check_shape(name: str, function: Callable[..., Tensor], output: Tensor, target: Tensor) -> Tensor:
    if output.shape != target.shape:
        shapes = f"the network gives {tuple(output.shape)}, and the targets are {tuple(target.shape)}"
        raise UsageError(f"--loss {name}: {shapes}")
    return function(output, target)


def check_targets(name: str, task: str | None, target: Tensor) -> None:
    """Raises UsageError: --task, or the targets (B, ...) of a first batch, are not what a loss takes."""
    short = functional_name(name)
    if short in OVER_CLASSES and task not in (None, "multiclass", "other"):
        fitting = "mse_loss" if task == "regression" else "binary_cross_entropy_with_logits"
        raise UsageError(f"--task {task} does not go with --loss {name}, which is of classes: --loss {fitting}")
    are_shares = short == "cross_entropy" and target.is_floating_point() and target.dim() > 1
    if are_shares and bool(((target.sum(1) - 1).abs() > 0.01).any()):
        others = "--loss mse_loss is of numbers, binary_cross_entropy_with_logits of yes or no"
        raise UsageError(f"--loss {name} is of classes, or shares of them, and these do not sum to 1; {others}")


def checked_target(name: str, target: Tensor) -> Tensor:
    """The targets (B, ...) of each batch; of binary cross entropy, which takes any, those outside 0..1 are refused.

    On a GPU, where a look at them would wait for all operations, these are NaN: so is the loss, and training stops.

    Raises: UsageError: on the CPU, a target is outside 0..1 by more than rounding, or NaN.
    """
    if not functional_name(name).startswith("binary_cross_entropy"):
        return target
    valid = (target >= -0.01) & (target <= 1.01)
    if target.device.type != "cpu" or type(target) is not Tensor:  # `plan` has tensors without values
        return target.where(valid, torch.nan)
    if not bool(valid.all()):
        given = f"takes targets in 0..1, and here is one of {float(target[~valid][0]):.3g}"
        raise UsageError(f"--loss {name} {given}: a loss of your own (--loss my_losses.mine) may leave some out")
    return target


def activation_problem(name: str, output: Tensor) -> str:
    """What a sigmoid or softmax at the end of a network makes wrong for a loss; "" where nothing is.

    output: of a step of the training, whose graph says what it ends in.

    Raises: UsageError: the loss takes numbers in 0..1, and these are others.
    """
    short = functional_name(name)
    if short == "binary_cross_entropy" and bool(((output < 0) | (output > 1)).any()):
        given = f"takes outputs in 0..1, and the network gives {float(output.min()):.3g} to {float(output.max()):.3g}"
        raise UsageError(f"--loss {name} {given}: give --loss binary_cross_entropy_with_logits")
    node = output.grad_fn
    while node is not None and node.name().startswith(_VIEWS):
        node = node.next_functions[0][0]
    last = node.name().partition("Backward")[0].lower() if node is not None else ""
    if short not in _WITH_ACTIVATION or last not in ("sigmoid", "softmax"):
        return ""
    return f"the network ends in a {last}, which does not go with --loss {name}: {_WITH_ACTIVATION[short]}"


def unused_outputs(name: str, output: Any, answer: Tensor) -> str:
    """A note on tensors with a gradient that a network returns beside its output; "" where there is none.

    Such as a part of a loss, or logits of an auxiliary classifier, which torchvision's Inception has in training.
    """
    fields = output._asdict() if hasattr(output, "_asdict") else output
    entries = fields.items() if isinstance(fields, Mapping) else enumerate(fields) if isinstance(fields, tuple) else ()
    unused = (key for key, one in entries if isinstance(one, Tensor) and one.requires_grad and one is not answer)
    if not (names := ", ".join(f"output {key}" for key in unused)):
        return ""
    own = "a loss of your own (--loss my_losses.mine) gets all outputs"
    return f"--loss {name} leaves out {names} of the network: {own}"


def arguments_from_data(name: str, options: dict[str, Any], attribute: Callable[[str], Any]) -> dict[str, Any]:
    """The arguments of a loss class, with those that it needs and no flag gave from attributes of the dataset.

    Raises: UsageError: the dataset has no such attribute.
    """
    function = discovery.find("model", name).load()
    parameters = inspect.signature(function).parameters.values() if isinstance(function, type) else ()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    found = {key: attribute(key) for key in needed if key not in options}
    if missing := [key for key, value in found.items() if value is None]:
        raise UsageError(f"--loss {name} needs --{missing[0]}, which the dataset does not know")
    return options | found


def batch_arguments(loss: Callable[..., Any]) -> tuple[int, dict[str, bool]]:
    """How many of output and target a custom loss takes, and the entries of the batch that it takes by name."""
    parameters = [*inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values()]
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    further = [one for one in parameters if one not in positional[:2] and one.kind is not one.VAR_KEYWORD]
    named = {one.name: one.default is one.empty for one in further if one.default in (one.empty, None)}
    return min(2, len(positional)), named


def total(parts: Any) -> Tensor | None:
    """The loss in what a network or a loss function returned: itself, the entry `loss`, or the sum of all entries.

    None where it is none: not of losses (), alone.
    """
    if isinstance(parts, Tensor):
        return parts if parts.dim() == 0 else None
    if isinstance(parts, Mapping):
        whole = parts.get("loss")
        if isinstance(whole, Tensor) and whole.dim() == 0:
            return whole
        if parts and all(isinstance(one, Tensor) and one.dim() == 0 for one in parts.values()):
            return sum(parts.values())  # type: ignore[return-value]
    return None


class ClassWeighted:
    """A loss over classes whose items weigh as much as their class."""

    def __init__(self, loss: Callable[..., Any], weight: Tensor) -> None:
        """weight: of each class (C,)."""
        self.loss, self.weight = loss, weight

    def __call__(self, output: Tensor, target: Tensor, **further: Any) -> Any:
        if (self.weight.device, self.weight.dtype) != (output.device, output.dtype):
            self.weight = self.weight.to(output)
        return self.loss(output, target, weight=self.weight, **further)


def mean_weight(target: Tensor, ignore_index: int, class_weight: Tensor | None) -> float | Tensor:
    """What torch has divided the mean loss of a batch by: its weight in the mean over all batches.

    target: classes (B, ...), of which those of `ignore_index` do not count; or shares of classes (B, C, ...).
    class_weight: of each class (C,), where they have weights.
    """
    if target.is_floating_point():
        return len(target)
    if class_weight is None and not target.is_cuda and target.numel():  # quicker where every target counts
        all_count = int(target.min()) > ignore_index if ignore_index < 0 else int(target.max()) < ignore_index
        if all_count:
            return target.numel()
    counts = target != ignore_index
    if class_weight is None:
        weights = counts.sum()
    else:
        weights = class_weight.double()[target.where(counts, 0)].where(counts, 0.0).sum()
    return weights if weights.is_cuda else weights.item()
