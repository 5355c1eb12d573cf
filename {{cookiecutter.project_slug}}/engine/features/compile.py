"""`--compile`: trains the network through torch.compile. Checkpoints fit with and without it."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError


def callbacks(run_dir: Any, model: Any, data: Any, *, compile: bool = False) -> list[Callback]:
    """compile: train the network through torch.compile; --throughput shows whether it is faster."""
    return [Compile()] if compile else []


class Compile(Callback):
    """Compiles `module.network` in place. Raises: UsageError: the module has no single `network`."""

    changes_step = True  # `plan` times with it

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not isinstance(network := getattr(module, "network", None), torch.nn.Module):
            raise UsageError(f"--compile: {type(module).__name__} has no single `network`; compile its networks itself")
        if stage == "fit":
            network.compile()
