"""What a step of training holds in memory, counted on tensors that take none (torch's FakeTensorMode)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from engine import hollow
from engine.settings import Settings

DTYPES = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
# Raised where code asks a fake tensor what it holds, or by an operation that has no fake version.
_READS = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


class Account(NamedTuple):
    """What one device holds that shares with no other; everything but `parameters` and `trainable` in bytes.

    layer, largest: the name of the layer with the most weights, and how many parameters it has.
    activations: of no item and of each further one: the batch and what autograd keeps for the backward pass, each
        storage once, weights aside. None where it cannot be told, for the reason in `why`.
    """

    parameters: int
    trainable: int
    weights: int
    buffers: int
    gradients: int
    optimizer: int
    layer: str
    largest: int
    activations: tuple[float, float] | None
    why: str


def count(settings: Settings, data: Any, batch: Any, precision: str, kind: str) -> Account:
    """Builds the network without its weights and counts what a step keeps of it.

    batch: of a few items, on the CPU. precision: "32-true", "bf16-mixed" ... kind: the type of device.

    Raises:
        UsageError: the network reads values while it is built, which tensors without memory do not have.
    """
    bits, _, how = precision.partition("-")
    dtype, mixed = DTYPES[bits], how == "mixed"
    with torch.device("meta"):
        model = hollow.build(settings, data)
        if not mixed:
            model.to(dtype)
    with FakeTensorMode() as mode, torch.device(kind):
        hollow.place(model, kind)  # a meta tensor would not tell which kernels are taken, and what they save
        batch = _mapped(batch, lambda one: mode.from_tensor(one).to(kind))
        if not mixed:
            batch = _mapped(batch, lambda one: one.to(dtype) if one.is_floating_point() else one)
        parameters = list(model.parameters())
        learns = [one for one in parameters if one.requires_grad]
        own = {name: sum(p.numel() for p in m.parameters(recurse=False)) for name, m in model.named_modules()}
        layer = max(own, key=lambda name: own[name])
        activations, why = None, ""
        with torch.autocast(kind, dtype) if mixed else hollow.default(dtype):
            try:
                few, many = (_saved(model, batch, size) for size in (64, 128))
                activations = (2.0 * few - many, (many - few) / 64)
            except (*_READS, NotImplementedError) as error:
                why = f"{type(model).__name__}: {' '.join(str(error).split())[:90]}"
        return Account(
            sum(one.numel() for one in parameters),
            sum(one.numel() for one in learns),
            bytes_of(parameters),
            bytes_of(model.buffers()),
            bytes_of(learns),
            _optimizer(model),
            layer.removeprefix("network.") or type(model).__name__,
            own[layer],
            activations,
            why,
        )


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What tensors take in memory, each storage counted once."""
    return sum({_store(one): one.untyped_storage().nbytes() for one in tensors}.values())


def _saved(model: Any, batch: Any, size: int) -> int:
    """Bytes of a batch of that size and of what its forward pass saves for the backward pass."""
    from model import MInterface

    if type(model).training_step is not MInterface.training_step:
        raise NotImplementedError("it has a training_step of its own, which is not followed")
    items = next(_tensors(batch)).shape[0]
    held: list[Tensor] = []
    batch = _mapped(batch, lambda one: one.new_empty((one.shape[0] * size // items, *one.shape[1:])))

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        try:
            model.step(batch, "train")
        except (RuntimeError, ValueError) as error:
            if not model.channels_last or isinstance(error, (*_READS, NotImplementedError)):
                raise
            model.channels_last = False  # as machine.py does where a network cannot take it
            return _saved(model, batch, size)
    model._waiting["train"].batches.clear()
    fixed = {_store(one) for one in (*model.parameters(), *model.buffers())}
    return bytes_of([*_tensors(batch), *(one for one in held if _store(one) not in fixed)])


def _optimizer(model: Any) -> int:
    """Bytes of the optimisers' state after a step."""
    made = model.configure_optimizers()
    total = 0
    for one in made[0] if isinstance(made, tuple) else made if isinstance(made, list) else [made]:
        optimizer = one["optimizer"] if isinstance(one, dict) else one
        for group in optimizer.param_groups:
            alike = Counter((one.shape, one.dtype) for one in group["params"])
            first = {(one.shape, one.dtype): one for one in reversed(group["params"])}
            for kind, parameter in first.items():  # one by one: its state is made before its values are read
                parameter.grad = torch.empty_like(parameter)
                optimizer.param_groups = [group | {"params": [parameter], "fused": False, "foreach": False}]
                with suppress(*_READS):
                    optimizer.step()
                state = [one for one in optimizer.state[parameter].values() if isinstance(one, Tensor)]
                total += alike[kind] * bytes_of(state)
    return total


def _store(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # where it lies in memory: of views the same


def _mapped(batch: Any, change: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, change, batch)


def _tensors(batch: Any) -> Iterator[Tensor]:
    return (one for one in torch.utils._pytree.tree_leaves(batch) if isinstance(one, Tensor))
