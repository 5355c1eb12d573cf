"""A line on the network at the start of training: its weights, and what an item costs. `--summary_depth`: a table."""

from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import nn

_UNITS = ("", " k", " M", " G", " T")


def callbacks(folder: Any, model: Any, data: Any, *, summary_depth: int | None = None) -> list[Callback]:
    """summary_depth: print a table of the layers too, so many levels deep; -1 for all."""
    return [Summary(data, summary_depth)]


class Summary(Callback):
    """Prints the line when training starts."""

    def __init__(self, data: Any, depth: int | None) -> None:
        self.data, self.depth = data, depth

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        flops = _flops(module, self.data)
        weights = [one for one in module.parameters() if not nn.parameter.is_lazy(one)]
        count = sum(one.numel() for one in weights)
        trained = sum(one.numel() for one in weights if one.requires_grad)
        size = sum(one.numel() * one.element_size() for one in (*weights, *module.buffers())) / 1e6
        share = "" if trained == count else f", {trained:,} of them trained"
        cost = "" if flops is None else f", {_short(flops)}FLOPs an item"
        plain = type(module).__name__ == "MInterface"  # else it is a system that has a name of its own
        name = type(module.network if plain else module).__name__
        print(f"{name}: {count:,} parameters{share}, {size:.3g} MB{cost}", flush=True)
        if self.depth is not None:
            from pytorch_lightning.utilities.model_summary import ModelSummary

            args, named = module.arguments(sample) if (sample := self.data.sample()) is not None else ((), {})
            module.example_input_array = named or tuple(args) or None  # so that it can tell what goes in and out
            print(ModelSummary(module, max_depth=self.depth))
            module.example_input_array = None


def _flops(module: Any, data: Any) -> float | None:
    """Floating point operations of a forward pass for one item (a product and a sum are two), where it can be told."""
    from torch.utils.flop_counter import FlopCounterMode

    network, sample = getattr(module, "network", None), data.sample()
    if network is None or sample is None or any(isinstance(layer, nn.LSTM) for layer in network.modules()):
        return None  # what nn.LSTM does on a CPU is not counted
    was_training, counter = network.training, FlopCounterMode(display=False)
    network.eval()
    try:
        args, named = module.transfer_batch_to_device(module.arguments(sample), module.device, 0)
        with torch.no_grad(), counter:
            network.forward(*args, **named)  # not by its call, which may have been compiled
        return counter.get_total_flops() / 2  # of the two items of a sample
    except Exception:  # its own mistakes are raised when it is trained
        return None
    finally:
        network.train(was_training)


def _short(number: float) -> str:
    """1234567 as "1.23 M"."""
    power = 0
    while number >= 999.5 and power < len(_UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g}{_UNITS[power] or ' '}"
