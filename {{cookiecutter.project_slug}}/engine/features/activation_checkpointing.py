"""`--activation_checkpointing`: recomputes the activations of layers in the backward pass, to save memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.checkpoint import checkpoint

from engine.training.name_patterns import matching_modules


def callbacks(*, activation_checkpointing: tuple[str, ...] = ()) -> list[Callback]:
    """The callback of --activation_checkpointing.

    activation_checkpointing: submodules (blocks) or patterns of their names (blocks.*) whose activations are not kept
        for the backward pass but recomputed there: less memory, longer steps, the same results.
    """
    return [ActivationCheckpointing(activation_checkpointing)] if activation_checkpointing else []


class ActivationCheckpointing(Callback):
    """Runs the `forward` of each matching layer through torch.utils.checkpoint; names and weights stay as they are.

    Source: T. Chen et al., "Training deep nets with sublinear memory cost", 2016.
    """

    changes_parameters = changes_step = True  # `plan` counts and times with it

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = patterns

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        layers = [one for each in self.patterns for one in matching_modules(module, each, "activation_checkpointing")]
        for layer in dict.fromkeys(layers) if stage == "fit" else ():
            layer.forward = partial(_forward, layer.forward, layer)


def _forward(forward: Any, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The layer's output."""
    buffers = [(one, name, buffer) for one in layer.modules() for name, buffer in one.named_buffers(recurse=False)]
    if buffers and torch.is_grad_enabled():
        return _forward_with_buffers(forward, buffers, args, kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch.compile does not trace the context
def _forward_with_buffers(forward: Any, buffers: list[Any], args: Any, kwargs: Any) -> Any:
    before = [(layer, name, buffer.clone()) for layer, name, buffer in buffers]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _with_buffers(before)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _with_buffers(before: list[tuple[torch.nn.Module, str, torch.Tensor]]) -> Iterator[None]:
    """Has layers compute with copies of the buffers that they had before: a second pass would update a batch norm's
    running statistics once more, and go on from a spectral norm's latest vectors."""
    after = [(layer, name, getattr(layer, name)) for layer, name, _ in before]
    for layer, name, buffer in before:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in after:
            setattr(layer, name, buffer)
