"""Training and evaluation mode of a network for a while; then each of its modules is in its own mode again."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from engine.lightning_compat import batch_norm_class

_AS_IN_EVALUATION = (batch_norm_class(), nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@contextmanager
def training_mode(network: nn.Module) -> Iterator[None]:
    """Puts a network into training mode, so that it returns its losses, with norms and dropout in evaluation mode."""
    changed = [one for one in network.modules() if not one.training]
    for module in changed:
        module.training = not isinstance(module, _AS_IN_EVALUATION)
    try:
        yield
    finally:
        for module in changed:
            module.training = False


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; a part that was in it before (a teacher, a frozen backbone) stays in it."""
    changed = [one for one in network.modules() if one.training]
    network.eval()
    try:
        yield
    finally:
        for module in changed:
            module.training = True
