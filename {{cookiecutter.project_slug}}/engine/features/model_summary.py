"""A line at the start of training: parameters, size, FLOPs of the network. `--summary_depth`: a table of layers."""

from typing import Annotated, Any

import torch
from matplotlib.ticker import EngFormatter
from pytorch_lightning.callbacks import LambdaCallback
from torch import nn

from engine.datamodule.item_fields import num_items
from engine.training.module_modes import evaluation_mode


def callbacks(data: Any, *, summary_depth: Annotated[int, ">= -1"] | None = None) -> list[LambdaCallback]:
    """summary_depth: also print a table of the layers, nested this deep; -1 for all."""

    def show(trainer: Any, module: Any, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        flops = _flops(module, data)
        weights = [weight for weight in module.parameters() if not nn.parameter.is_lazy(weight)]
        count = sum(weight.numel() for weight in weights)
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        megabytes = sum(tensor.nbytes for tensor in (*weights, *module.buffers())) / 1e6
        frozen = "" if trained == count else f", {trained:,} of them trained"
        cost = "" if flops is None else f", {EngFormatter('FLOPs')(float(f'{flops:.3g}'))} an item"
        name = type(module.network if type(module).__name__ == "MInterface" else module).__name__
        print(f"{name}: {count:,} parameters{frozen}, {megabytes:.3g} MB{cost}", flush=True)
        if summary_depth is not None:
            from pytorch_lightning.utilities.model_summary import ModelSummary

            own = module.example_input_array
            if own is None and hasattr(module, "arguments") and (sample := data.sample()) is not None:
                args, kwargs = module.arguments(sample)
                module.example_input_array = kwargs or tuple(args) or None  # for the columns of input and output sizes
            print(ModelSummary(module, max_depth=summary_depth))
            module.example_input_array = own

    return [LambdaCallback(setup=show)]


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
        return counter.get_total_flops() / num_items(module, sample)
    except Exception:  # an error of the network is raised in training
        return None
