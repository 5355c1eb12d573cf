"""The loss by its name in torch.nn.functional, or by the dotted path of a function."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional

from engine.cli import discovery
from engine.errors import UsageError

_SAME_SHAPE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")  # torch would broadcast these


def build(name: str, options: dict[str, Any]) -> Callable[..., Tensor]:
    """The function (output, target) -> mean loss.

    options: further arguments of the function, such as `label_smoothing`.
    """
    function = discovery.find("model", name).load() if "." in name else getattr(functional, name)
    function = partial(function, **options) if options else function
    return partial(_check_shape, name, function) if name in _SAME_SHAPE else function


def _check_shape(name: str, function: Callable[..., Tensor], output: Tensor, target: Tensor) -> Tensor:
    if output.shape != target.shape:
        shapes = f"the network gives {tuple(output.shape)}, and the targets are {tuple(target.shape)}"
        raise UsageError(f"--loss {name}: {shapes}")
    return function(output, target)
