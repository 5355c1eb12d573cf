"""`--compile`: trains the network through torch.compile. Checkpoints fit with and without it."""

from typing import Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError


def callbacks(
    *, compile: bool = False, compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
) -> list[Callback]:
    """The callback of --compile.

    compile: train the network through torch.compile; --throughput shows whether it is faster.
    compile_mode: mode of torch.compile: reduce-overhead replays CUDA graphs, for small networks whose kernels are
        shorter than their launches; max-autotune also tries several kernels.
    """
    if compile_mode != "default" and not compile:
        raise UsageError(f"--compile_mode {compile_mode} needs --compile")
    return [Compile(compile_mode)] if compile else []


class Compile(Callback):
    """Compiles `module.network` in place. Raises: UsageError: the module has no single `network`."""

    changes_step = True  # `plan` times with it

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not isinstance(network := getattr(module, "network", None), torch.nn.Module):
            raise UsageError(f"--compile: {type(module).__name__} has no single `network`; compile its networks itself")
        if stage == "fit":
            network.compile(mode=self.mode)
