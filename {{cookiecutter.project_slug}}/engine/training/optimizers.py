"""The optimiser by its name in torch.optim, over groups of parameters with rates and decays of their own."""

import fnmatch
from typing import Any

import torch
from torch import nn

from engine.cli import discovery
from engine.errors import UsageError

_FUSED = {"Adam", "AdamW", "SGD", "Adagrad"}  # one call for all parameters, on the CPU too


def load(
    name: str,
    module: nn.Module,
    lr: float,
    weight_decay: float | None,
    options: dict[str, Any],
    *,
    fused: bool,
    no_decay_norm_bias: bool = False,
    lr_scale: tuple[str, ...] = (),
) -> torch.optim.Optimizer:
    """The optimiser over the parameters that learn.

    name: a class of torch.optim, or a dotted path.
    weight_decay: None for the optimiser's own default.
    options: further arguments of its constructor.
    fused: use the fused kernel where there is one.
    no_decay_norm_bias: parameters of one dimension (biases, gains of norms) do not decay.
    lr_scale: "PATTERN=FACTOR"; a parameter has the rate of the last pattern that its name matches.

    Raises:
        UsageError: a pattern matches nothing, or is none.
    """
    options = dict(options)
    if fused and name in _FUSED:
        options["fused"] = True
    if weight_decay is not None:
        options["weight_decay"] = weight_decay
    factors = dict.fromkeys((key for key, one in module.named_parameters() if one.requires_grad), 1.0)
    for text in lr_scale:
        pattern, _, number = text.partition("=")
        try:
            scale = float(number)
        except ValueError:
            raise UsageError(f"--lr_scale {text}: write PATTERN=FACTOR, such as 'backbone=0.1'") from None
        factors |= {key: scale for key in matching(module, pattern, "lr_scale") if key in factors}
    named = dict(module.named_parameters())
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for key, factor in factors.items():
        plain = no_decay_norm_bias and named[key].dim() < 2
        groups.setdefault((factor, plain), []).append(named[key])
    kind = discovery.find("model", name).load() if "." in name else getattr(torch.optim, name)
    return kind(
        [
            {"params": some, "lr": lr * factor} | ({"weight_decay": 0.0} if plain else {})
            for (factor, plain), some in groups.items()
        ],
        lr=lr,
        **options,
    )


def matching(module: nn.Module, pattern: str, flag: str) -> list[str]:
    """The names of the parameters that a pattern means: a part of the network (`backbone`), or wildcards (`*.bias`).

    Raises:
        UsageError: there is none; the message says what parts there are.
    """
    short = {key.removeprefix("network."): key for key, _ in module.named_parameters()}
    found = [key for name, key in short.items() if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
    if not found:
        parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in short))
        raise UsageError(f"--{flag} {pattern}: no parameter has such a name; the network has {parts}")
    return found
