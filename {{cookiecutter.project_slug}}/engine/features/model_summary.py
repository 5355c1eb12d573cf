"""A line at the start of training: parameters, size, FLOPs of the network. `--summary_depth`: a table of layers."""

from typing import Annotated, Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import nn

from engine.training.module_modes import evaluation_mode

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def callbacks(data: Any, *, summary_depth: Annotated[int, ">= -1"] | None = None) -> list[Callback]:
    """summary_depth: also print a table of the layers, nested this deep; -1 for all."""
    return [Summary(data, summary_depth)]


class Summary(Callback):
    """Prints the line, and the table, when training starts."""

    def __init__(self, data: Any, depth: int | None) -> None:
        self.data, self.depth = data, depth

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        flops = _flops(module, self.data)
        weights = [weight for weight in module.parameters() if not nn.parameter.is_lazy(weight)]
        count = sum(weight.numel() for weight in weights)
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        megabytes = sum(tensor.nbytes for tensor in (*weights, *module.buffers())) / 1e6
        frozen = "" if trained == count else f", {trained:,} of them trained"
        cost = "" if flops is None else f", {_with_unit(flops)}FLOPs an item"
        name = type(module.network if type(module).__name__ == "MInterface" else module).__name__
        print(f"{name}: {count:,} parameters{frozen}, {megabytes:.3g} MB{cost}", flush=True)
        if self.depth is not None:
            from pytorch_lightning.utilities.model_summary import ModelSummary

            own = module.example_input_array
            if own is None and hasattr(module, "arguments") and (sample := self.data.sample()) is not None:
                args, kwargs = module.arguments(sample)
                module.example_input_array = kwargs or tuple(args) or None  # for the columns of input and output sizes
            print(ModelSummary(module, max_depth=self.depth))
            module.example_input_array = own


def _flops(module: Any, data: Any) -> float | None:
    """Floating point operations of a forward pass per item (a multiply-add is two); None where they are unknown."""
    from torch.utils.flop_counter import FlopCounterMode

    network, sample = getattr(module, "network", None), data.sample()
    if network is None or sample is None or any(isinstance(layer, nn.LSTM) for layer in network.modules()):
        return None  # FlopCounterMode does not count nn.LSTM on a CPU
    counter = FlopCounterMode(display=False)
    try:
        args, kwargs = module.transfer_batch_to_device(module.arguments(sample), module.device, 0)
        with torch.no_grad(), evaluation_mode(network), counter:
            network.forward(*args, **kwargs)  # __call__ may be compiled
        return counter.get_total_flops() / 2  # a sample is two items
    except Exception:  # an error of the network is raised in training
        return None


def _with_unit(number: float) -> str:
    """1234567 as "1.23 M", 80 as "80 "."""
    factor, unit = next((pair for pair in _UNITS if number >= 0.9995 * pair[0]), _UNITS[-1])
    return f"{number / factor:.3g} {unit}"
