"""The optimiser by its name in torch.optim."""

from collections.abc import Iterable

import torch

_FUSED = {"Adam", "AdamW", "SGD", "Adagrad"}  # one call for all parameters, on the CPU too


def load(
    name: str, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float, fused: bool
) -> torch.optim.Optimizer:
    """The optimiser over the parameters that learn.

    momentum: for those that have one (SGD, RMSprop).
    fused: use the fused kernel where there is one.
    """
    options = {"momentum": momentum} if name in ("SGD", "RMSprop") else {}
    if fused and name in _FUSED:
        options["fused"] = True
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    return getattr(torch.optim, name)(learning, lr=lr, weight_decay=weight_decay, **options)
