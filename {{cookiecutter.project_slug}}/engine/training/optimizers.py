"""The optimizer by its name in torch.optim, with parameter groups for learning rates and weight decay."""

import functools
import re
from typing import Any

import torch
from torch import nn

from engine.cli import discovery
from engine.errors import UsageError
from engine.training.muon import Muon
from engine.training.name_patterns import find_network, matching_parameters

_FUSED = {"Adam", "AdamW", "SGD", "Adagrad", "Muon"}  # have a fused kernel, on the CPU too


def build(
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
    """The optimizer over the parameters that require a gradient.

    name: a class of torch.optim, or a dotted path.
    weight_decay: None for the optimizer's own default.
    options: further arguments of its constructor.
    fused: use the fused kernel where the optimizer has one.
    no_decay_norm_bias: parameters of one dimension (biases, gains of norms) do not decay.
    lr_scale: "PATTERN=FACTOR" of `lr`; the last pattern that a parameter's name matches counts.

    Raises: UsageError: a pattern matches no parameter, or a factor is not a number.
    """
    options = dict(options)
    if fused and name in _FUSED and all(one.is_floating_point() for one in module.parameters()):  # none is complex
        options["fused"] = True
    if weight_decay is not None:
        options["weight_decay"] = weight_decay
    factors = dict.fromkeys((key for key, parameter in module.named_parameters() if parameter.requires_grad), 1.0)
    patterns: dict[float, list[str]] = {}
    for text in lr_scale:
        pattern, _, number = text.partition("=")
        try:
            scale = float(number)
        except ValueError:
            raise UsageError(f"--lr_scale {text}: write PATTERN=FACTOR, such as 'backbone=0.1'") from None
        patterns.setdefault(scale, []).append(pattern)
        factors |= {key: scale for key in matching_parameters(module, pattern, "lr_scale") if key in factors}
    if not factors:
        name = type(find_network(module)).__name__
        raise UsageError(f"nothing is trained: {name} has no parameter that requires a gradient")
    named = dict(module.named_parameters())
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for key, factor in factors.items():
        no_decay = no_decay_norm_bias and named[key].dim() < 2
        groups.setdefault((factor, no_decay), []).append(named[key])
    params = [
        {"params": parameters, "lr": lr * factor, "name": ",".join(patterns.get(factor, []))}
        | ({"weight_decay": 0.0} if no_decay else {})
        for (factor, no_decay), parameters in groups.items()
    ]
    if name == "Muon":
        return Muon(params, module, lr, **options)
    optimizer_class = discovery.find("model", name).load() if "." in name else getattr(torch.optim, name)
    return optimizer_class(params, lr=lr, **options)


def check_configured(module: Any) -> None:
    """Has a LightningModule's configure_optimizers raise UsageError where Lightning's own message would not help.

    Lightning would leave out a misspelt entry, train nothing, or end in a traceback of its own.
    """
    configure, where = module.configure_optimizers, f"{type(module).__name__}.configure_optimizers"
    entries = ("optimizer", "lr_scheduler", "monitor")

    @functools.wraps(configure)
    def checked() -> Any:
        given = configure()
        pair = isinstance(given, (list, tuple)) and len(given) == 2 and isinstance(given[0], list)
        several = given[0] if pair else given if isinstance(given, (list, tuple)) else [] if given is None else [given]
        for one in several:
            if isinstance(one, dict) and ("optimizer" not in one or not one.keys() <= {*entries}):
                raise UsageError(f"{where} returns a dict of {', '.join(one)}; Lightning takes {', '.join(entries)}")
        are_known = all(isinstance(one, (dict, torch.optim.Optimizer)) for one in several)
        if module.automatic_optimization and are_known and len(several) != 1:
            ways = "return one, or set self.automatic_optimization = False and have training_step take the steps"
            raise UsageError(f"{where} returns {len(several)} optimizers: {ways}")
        return given

    module.configure_optimizers = checked


def current_lrs(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of each group: "lr", and "lr/PATTERN" of those that --lr_scale names.

    In a pattern, what a logger does not take (MLflow's `*`) is an underscore.
    """
    groups = reversed(optimizer.param_groups)
    rates = {re.sub(r"[^-.:/ \w]", "_", group.get("name", "")): group["lr"] for group in groups}
    return {f"lr/{name}" if name else "lr": rate for name, rate in rates.items()}
