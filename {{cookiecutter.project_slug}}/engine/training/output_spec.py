"""OutputSpec: what an output holds (logits of classes, binary logits, numbers), inferred from the loss and a target."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from engine.errors import UsageError
from engine.training import losses
from engine.training.losses import functional_name

Task = Literal["multiclass", "binary", "multilabel", "regression", "other"]
MISSING = -1  # what metrics get of a yes or no that is not known
_ENTRIES = ("logits", "out", "output", "prediction", "predictions")


def infer_task(loss: str, target_info: dict[str, Any]) -> Task:
    """The task of a loss, in torchmetrics' words; of a function of one's own, by the dtype of the targets.

    target_info: see SplitDataModule.target_info; an entry "task" overrides the guess.

    Raises: UsageError: the targets are of another task.
    """
    loss, task, shape = functional_name(loss), target_info.get("task"), target_info.get("shape")
    if task == "multilabel" and shape == ():
        raise UsageError("--task multilabel is of several answers an item, and each target is one: --task binary")
    if task:
        return task
    if loss in losses.OVER_CLASSES or ("." in loss and target_info.get("is_integer")):
        return "multiclass"
    if loss.startswith("binary_cross"):
        return "binary" if shape in (None, (), (1,)) else "multilabel"
    return "regression"


def main_output(output: Any) -> Any:
    """The predictions in an output: of a dict `logits`, `out` ... or its only tensor, of a tuple the first entry
    that is no scalar.

    None where a dict has several.
    """
    if isinstance(output, Mapping):
        named = [output[name] for name in _ENTRIES if name in output]
        tensors = [one for one in output.values() if isinstance(one, Tensor) and one.dim()]
        return named[0] if named else tensors[0] if len(tensors) == 1 else None
    if isinstance(output, tuple) and output and not hasattr(output, "batch_sizes"):
        return next((one for one in output if not isinstance(one, Tensor) or one.dim()), None)
    return output


class OutputSpec:
    """What an output holds, and how it compares with its target.

    task: multiclass: a logit per class; binary and multilabel: a logit per positive class; regression: numbers.
    class_dim: dimension of the classes in an output; None until a batch has shown it.
    are_logits: binary and multilabel outputs are logits, not probabilities.
    """

    def __init__(self, task: Task, class_dim: int | None = None, are_logits: bool = True) -> None:
        self.task: Task = task
        self.class_dim, self.are_logits = class_dim, are_logits

    def align_with_target(self, output: Tensor, target: Tensor) -> Tensor:
        """The output as torch and torchmetrics take it: classes in dimension 1, numbers in the shape of the target.

        Raises: UsageError: the targets are numbers; the classes could be along two dimensions.
        """
        if self.task != "multiclass":
            return output.squeeze(-1) if output.shape == (*target.shape, 1) else output  # (B, 1) -> (B,)
        are_shares = target.shape == output.shape and target.dim() == 2 and target.shape[1] > 1
        if target.is_floating_point() and not are_shares:
            raise UsageError(f"the targets are numbers ({target.dtype}), not classes: give --loss mse_loss")
        if output.dim() > 2 and output.dim() == target.dim() + 1:
            if self.class_dim is None:
                self.class_dim = _find_class_dim(output, target)
            return output.movedim(self.class_dim, 1)
        return output

    def matches(self, output: Tensor, target: Tensor, num_classes: int | None) -> bool:
        """Whether an aligned output can be measured against a target."""
        if self.task == "multiclass" and not target.is_floating_point():
            shape = output.shape[:1] + output.shape[2:]
            return output.dim() > 1 and shape == target.shape and num_classes in (None, output.shape[1])
        return output.shape == target.shape and not output.is_complex()

    def known_answers(self, target: Tensor) -> Tensor:
        """The targets as metrics take them: of yes or no, what is below 0 or NaN is MISSING."""
        of_yes_or_no = self.task in ("binary", "multilabel") and target.is_floating_point()
        return target.where(target >= 0, MISSING) if of_yes_or_no else target

    def probabilities(self, output: Tensor) -> Tensor:
        """The probabilities of classes, or of yes, that an output (B, ...) stands for; other outputs unchanged."""
        if self.task == "multiclass":
            return output.float().softmax(self.class_dim or 1) if self.are_logits else output
        is_logit = self.task in ("binary", "multilabel") and self.are_logits
        return output.sigmoid() if is_logit else output


class Head(NamedTuple):
    """One of several outputs of a network: its loss by name, the loss function, its weight, and its OutputSpec."""

    loss_name: str
    loss: Callable[..., Any]
    weight: float
    spec: OutputSpec


def build_heads(
    texts: tuple[str, ...], loss: str, target_info: dict[str, Any], class_dim: int | None
) -> dict[str, Head]:
    """The heads of a network whose outputs and targets are dicts, by name; {} where the targets are none.

    texts: HEAD=LOSS or HEAD=LOSS*WEIGHT. Without any, a head takes `loss` where it goes with the target's dtype, and
    else cross_entropy for whole numbers and mse_loss for others.

    Raises: UsageError: a text is no such pair, or the targets have no such head.
    """
    infos: dict[str, dict[str, Any]] = target_info.get("heads", {})
    if not texts and "." not in loss:
        texts = tuple(f"{name}={_loss_for(loss, info)}" for name, info in infos.items())
    heads = {}
    for text in texts:
        name, _, loss_name = text.partition("=")
        loss_name, _, weight = loss_name.partition("*")
        if infos and name not in infos:
            raise UsageError(f"--head_losses {text}: the targets have {', '.join(infos)}")
        try:
            number = float(weight or 1)
            function = losses.build(loss_name, {})
        except (ValueError, AttributeError):
            form = "HEAD=LOSS or HEAD=LOSS*WEIGHT, such as size=mse_loss*0.1"
            raise UsageError(f"--head_losses {text}: write {form}") from None
        are_logits = functional_name(loss_name) != "binary_cross_entropy"
        spec = OutputSpec(infer_task(loss_name, infos.get(name, {})), class_dim, are_logits)
        heads[name] = Head(loss_name, function, number, spec)
    return heads


def _loss_for(loss: str, info: dict[str, Any]) -> str:
    is_integer = bool(info.get("is_integer"))
    if (infer_task(loss, info) == "multiclass") == is_integer:
        return loss
    return "cross_entropy" if is_integer else "mse_loss"


def _find_class_dim(output: Tensor, target: Tensor) -> int:
    first = output.shape[:1] + output.shape[2:] == target.shape
    last = output.shape[:-1] == target.shape
    if first and last:
        shapes = f"outputs {tuple(output.shape)} with targets {tuple(target.shape)}"
        raise UsageError(f"{shapes} may have their classes in dimension 1 or in the last one: --class_dim 1, or -1")
    return -1 if last else 1
