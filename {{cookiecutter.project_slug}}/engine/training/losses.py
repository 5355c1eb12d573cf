"""The loss by its name in torch.nn.functional, or by the dotted path of one's own function."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional

from engine.cli import discovery
from engine.errors import UsageError

_ALIKE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")  # of outputs in the shape of the targets


def load(name: str, options: dict[str, Any]) -> Callable[..., Tensor]:
    """The function (output, target) -> mean loss.

    options: further arguments of the function, such as `label_smoothing`.
    """
    function = discovery.find("model", name).load() if "." in name else getattr(functional, name)
    function = partial(function, **options) if options else function
    return partial(_alike, name, function) if name in _ALIKE else function


def _alike(name: str, function: Callable[..., Tensor], output: Tensor, target: Tensor) -> Tensor:
    if output.shape != target.shape:  # torch would spread one of them over the other
        said = f"the network gives {tuple(output.shape)}, and the targets are {tuple(target.shape)}"
        raise UsageError(f"--loss {name}: {said}")
    return function(output, target)
