"""`--init`: the initial weights of linear layers and convolutions, drawn by a function of torch.nn.init."""

import ast
import inspect
import re
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from engine.errors import UsageError, nearest

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NAMES = [name[:-1] for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
_PRETRAINED = re.compile(r"pretrained\w*|(encoder_|backbone_)?weights|weights_(backbone|file)")  # timm's, torchvision's


def callbacks(*, init: str | None = None, init_args: tuple[str, ...] = ()) -> list[Callback]:
    """The callback of --init.

    init: function of torch.nn.init, such as kaiming_normal, xavier_uniform, orthogonal, trunc_normal, for the first
        weights of linear layers and convolutions; their biases begin with 0.
    init_args: arguments of the init function, such as std=0.02 or mode=fan_out nonlinearity=relu.
    """
    if init is None:
        if init_args:
            raise UsageError("--init_args are arguments of --init: give it too")
        return []
    return [Initialization(init, _function(init, init_args))]


def _function(name: str, texts: tuple[str, ...]) -> partial[Any]:
    """The function of torch.nn.init, with its arguments."""
    if name not in _NAMES:
        raise UsageError(f"--init {name}{nearest(name, _NAMES)}; there are: {', '.join(_NAMES)}")
    function = getattr(nn.init, f"{name}_")
    known = [one for one in inspect.signature(function).parameters.values() if one.name not in ("tensor", "generator")]
    arguments: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in [one.name for one in known] or not value:
            raise UsageError(f"--init_args {text}: {name} has {', '.join(map(str, known)) or 'no arguments'}")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    if missing := [one.name for one in known if one.default is one.empty and one.name not in arguments]:
        raise UsageError(f"--init {name} needs --init_args {missing[0]}=...")
    return partial(function, **arguments)


class Initialization(Callback):
    """Draws the weights before a new run begins; a resumed run has weights of its own."""

    def __init__(self, name: str, function: partial[Any]) -> None:
        self.name, self.function = name, function

    @torch.no_grad()
    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.ckpt_path is not None:
            return
        for flag, value in module.hparams.items():
            if value and (flag == "init_from" or _PRETRAINED.fullmatch(flag)):
                raise UsageError(f"--init {self.name} would overwrite weights of --{flag} {value}: give one of them")
        layers = [(name, one) for name, one in module.named_modules() if isinstance(one, _LAYERS)]
        if not layers:
            raise UsageError(f"--init {self.name}: the network has neither linear layers nor convolutions")
        done = {id(self._draw(name.removeprefix("network."), layer)) for name, layer in layers}
        others = [name for name, one in module.named_parameters() if one.dim() > 1 and id(one) not in done]
        if trainer.is_global_zero:
            left = f"; as they were: {', '.join(name.removeprefix('network.') for name in others)}" if others else ""
            print(f"{self.name}: weights of {len(done)} layers, biases 0{left}", flush=True)

    def _draw(self, name: str, layer: Any) -> nn.Parameter:
        """Draws the weight of a layer, which is returned, and sets its bias to 0."""
        if nn.parameter.is_lazy(layer.weight) or not isinstance(layer.weight, nn.Parameter):
            kind = "not known before data comes" if nn.parameter.is_lazy(layer.weight) else "computed from others"
            raise UsageError(f"--init {self.name}: the weight of {name} is {kind}: initialize it in the network")
        drawn = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)  # the same in any memory format
        try:
            self.function(drawn)
        except (ValueError, TypeError) as error:
            raise UsageError(f"--init {self.name}: {name}.weight {tuple(drawn.shape)}: {error}") from error
        layer.weight.copy_(drawn)
        if layer.bias is not None:
            layer.bias.zero_()
        return layer.weight
