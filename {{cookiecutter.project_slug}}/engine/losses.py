"""The loss by its name in torch.nn.functional."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


def load(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The function (output, target) -> mean loss."""
    return getattr(functional, name)
