"""What a step of training holds and computes, counted on torch's fake tensors, without memory; goes with plan.py."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from engine.commands.plan import meta_network
from engine.lightning_compat import fake_tensor_errors, fake_tensor_mode, storage_key

DTYPES = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
# Raised where code asks a fake tensor what it holds, or by an operation that has no fake version.
_READS = fake_tensor_errors()
_UNCOUNTED: tuple[type[Exception], ...] = (*_READS, NotImplementedError)


class Account(NamedTuple):
    """What one device holds that shares with no other; in bytes but for `parameters`, `trainable` and `flops`.

    layer, largest: the name of the layer with the most weights, and how many parameters it has.
    activations: of no item and of each further one: the batch and what autograd keeps for the backward pass, each
        storage once, weights aside. None where it cannot be told, for the reason in `why`.
    workspace: what is there beside all these at the fullest moment, for each item: results that nothing keeps,
        gradients on their way. What a kernel takes for itself is not seen.
    flops: of the products and convolutions of a forward pass, for each item, a multiplication and an addition being
        two; 0 where it cannot be told.
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
    workspace: float
    flops: float
    why: str


def count(build: Callable[[], Any], batch: Any, precision: str, kind: str) -> Account:
    """Builds the network without its weights and counts what a step keeps of it.

    batch: of a few items, on the CPU. precision: "32-true", "bf16-mixed" ... kind: the type of device.

    Raises:
        UsageError: the network reads values while it is built, which tensors without memory do not have.
    """
    how = meta_network.precision(precision, kind)
    with torch.device("meta"):
        model = how.convert_module(build())
    with fake_tensor_mode() as mode, torch.device(kind):
        meta_network.place(model, kind)  # a meta tensor would not tell which kernels are taken, and what they save
        batch = how.convert_input(tree_map_only(Tensor, lambda one: mode.from_tensor(one).to(kind), batch))
        parameters = list(model.parameters())
        learns = [one for one in parameters if one.requires_grad]
        own = {name: sum(p.numel() for p in m.parameters(recurse=False)) for name, m in model.named_modules()}
        layer = max(own, key=lambda name: own[name])
        activations, workspace, flops, why = None, 0.0, 0.0, ""
        try:
            few, many = (_step(model, batch, size, how) for size in (64, 128))
            activations, workspace = (2.0 * few.saved - many.saved, (many.saved - few.saved) / 64), many.beside / 128
            flops = (many.flops - few.flops) / 64
        except _UNCOUNTED as error:
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
            workspace,
            flops,
            why,
        )


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What tensors take in memory, each storage counted once."""
    return sum({storage_key(one): one.untyped_storage().nbytes() for one in tensors}.values())


class _Step(NamedTuple):
    """Bytes that autograd saves, the batch with them; those that are there beside at the most; operations forward."""

    saved: int
    beside: float
    flops: int


class _Live(TorchDispatchMode):
    """Bytes of what is made within it: now, and at the most since `most` was set."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        # What was there before is held, so that nothing new gets its place.
        self.known: dict[int, Any] = {storage_key(one): one.untyped_storage() for one in there}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in _tensors(found):
            if storage_key(one) not in self.known:
                storage = one.untyped_storage()
                self.known[storage_key(one)] = None
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage_key(one), storage.nbytes())
        self.most = max(self.most, self.now)
        return found

    def _gone(self, store: int, size: int) -> None:
        self.known.pop(store, None)
        self.now -= size


def _step(model: Any, batch: Any, size: int, how: Any) -> _Step:
    """A forward and a backward pass over so many items. how: Lightning's plugin for the precision."""
    if type(model).training_step.__qualname__ != "MInterface.training_step":
        raise NotImplementedError("it has a training_step of its own, which is not followed")
    items = next(_tensors(batch)).shape[0]
    held: list[Tensor] = []
    batch = tree_map_only(Tensor, lambda one: one.new_empty((one.shape[0] * size // items, *one.shape[1:])), batch)
    own = [*model.parameters(), *model.buffers()]

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    live = _Live([*own, *_tensors(batch)])
    with live:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one), FlopCounterMode(display=False) as done:
            try:
                with how.forward_context():
                    loss = model.step(batch, "train")
            except (RuntimeError, ValueError) as error:
                if not model.channels_last or isinstance(error, _UNCOUNTED):
                    raise
                model.channels_last = False  # as machine.py does where a network cannot take it
                return _step(model, batch, size, how)
        model._metric_buffers["train"].batches.clear()
        fixed = {storage_key(one) for one in own}
        given = bytes_of(_tensors(batch))
        saved = bytes_of([*_tensors(batch), *(one for one in held if storage_key(one) not in fixed)])
        held.clear()
        gradients = bytes_of(one for one in own if one.requires_grad)
        forward, live.most = live.most, live.now
        loss.backward()
    model.zero_grad()
    fullest = max(forward + gradients, live.most)  # those of the step before are there until the backward pass
    return _Step(saved, max(0.0, fullest - gradients - (saved - given)), done.get_total_flops())


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


def _tensors(batch: Any) -> Iterator[Tensor]:
    return (one for one in tree_leaves(batch) if isinstance(one, Tensor))
