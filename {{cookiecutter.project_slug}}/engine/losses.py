"""The loss by its name in torch.nn.functional, or by the dotted path of one's own function."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional

from engine import discovery


def load(name: str, options: dict[str, Any]) -> Callable[..., Tensor]:
    """The function (output, target) -> mean loss.

    options: further arguments of the function, such as `label_smoothing`.
    """
    function = discovery.find("model", name).load() if "." in name else getattr(functional, name)
    return partial(function, **options) if options else function
