"""What a step of training holds and computes, counted on tensors that take no memory (torch's FakeTensorMode)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from engine.discovery import UsageError
from engine.settings import Settings

DTYPES = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
# Raised where code asks a fake tensor what it holds, or by an operation that has no fake version.
_READS = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


class Account(NamedTuple):
    """What one device holds that shares with no other; in bytes but for `parameters`, `trainable` and `flops`.

    layer, largest: the name of the layer with the most weights, and how many parameters it has.
    activations: of no item and of each further one: the batch and what autograd keeps for the backward pass, each
        storage once, weights aside. None where it cannot be told, for the reason in `why`.
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
    flops: float
    why: str


def count(settings: Settings, data: Any, batch: Any, precision: str, kind: str) -> Account:
    """Builds the network without its weights and counts what a step keeps of it.

    batch: of a few items, on the CPU. precision: "32-true", "bf16-mixed" ... kind: the type of device.

    Raises:
        UsageError: the network reads values while it is built, which tensors without memory do not have.
    """
    how = _precision(precision, kind)
    with torch.device("meta"):
        model = how.convert_module(_build(settings, data))
    with FakeTensorMode() as mode, torch.device(kind):
        _place(model, kind)  # a meta tensor would not tell which kernels are taken, and what they save
        batch = how.convert_input(tree_map_only(Tensor, lambda one: mode.from_tensor(one).to(kind), batch))
        parameters = list(model.parameters())
        learns = [one for one in parameters if one.requires_grad]
        own = {name: sum(p.numel() for p in m.parameters(recurse=False)) for name, m in model.named_modules()}
        layer = max(own, key=lambda name: own[name])
        activations, flops, why = None, 0.0, ""
        with how.forward_context():
            try:
                (few, one_flops), (many, two_flops) = (_pass(model, batch, size) for size in (64, 128))
                activations, flops = (2.0 * few - many, (many - few) / 64), (two_flops - one_flops) / 64
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
            flops,
            why,
        )


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What tensors take in memory, each storage counted once."""
    return sum({_store(one): one.untyped_storage().nbytes() for one in tensors}.values())


def _precision(name: str, kind: str) -> Any:
    """What Lightning does to networks, batches and the pass."""
    if name.endswith("mixed"):
        return MixedPrecision(name, kind)  # type: ignore[arg-type]
    return HalfPrecision(name) if "16" in name else DoublePrecision() if "64" in name else Precision()  # type: ignore[arg-type]


def _build(settings: Settings, data: Any) -> Any:
    """The network in its interface, ready to be trained, as large as a run would have it."""
    from model import MInterface

    quiet = settings._replace(ckpt_path=Path())  # as beside a checkpoint, no weights of others are fetched
    try:
        model = MInterface.of(quiet, data)
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensor" not in str(error):
            raise
        name, said = settings.network.name, str(error).partition("\n")[0]
        raise UsageError(
            f"plan builds {name} on the meta device, where tensors have no values, and {name} asks for some ({said}): "
            "take Python's numbers or numpy's there"
        ) from error
    constant(model)
    convolves = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
    model.channels_last = convolves and settings.arguments["machine"]["channels_last"]
    silent: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    model.trainer = Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **silent)
    if "freeze" in settings.arguments:
        for one in import_module("engine.freeze").callbacks(None, model, data, **settings.arguments["freeze"]):
            one.setup(model.trainer, model, "fit")
    for metric in model.metrics.values():  # they read values, and hold little
        metric.update = metric.add = lambda *args, **named: None  # type: ignore[assignment]
    return model.train()


def constant(model: Any) -> None:
    """Has the rate stay as it is: other schedules ask how long training lasts."""
    model.schedule |= {"lr_scheduler": "constant", "warmup_steps": 0, "warmup_epochs": 0.0}


def _place(model: nn.Module, kind: str) -> None:
    """Puts fake tensors of a device in place of those of the meta device; what was shared stays shared."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for name, one in [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]:
            if isinstance(one, Tensor):
                if id(one) not in made:
                    fake = torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=kind)
                    learns = isinstance(one, nn.Parameter)
                    made[id(one)] = one, nn.Parameter(fake, one.requires_grad) if learns else fake
                setattr(module, name, made[id(one)][1])


def _pass(model: Any, batch: Any, size: int) -> tuple[int, int]:
    """Bytes of a batch of that size and of what its forward pass saves for the backward pass, and its operations."""
    from model import MInterface

    if type(model).training_step is not MInterface.training_step:
        raise NotImplementedError("it has a training_step of its own, which is not followed")
    items = next(_tensors(batch)).shape[0]
    held: list[Tensor] = []
    batch = tree_map_only(Tensor, lambda one: one.new_empty((one.shape[0] * size // items, *one.shape[1:])), batch)

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), FlopCounterMode(display=False) as done:
        try:
            model.step(batch, "train")
        except (RuntimeError, ValueError) as error:
            if not model.channels_last or isinstance(error, (*_READS, NotImplementedError)):
                raise
            model.channels_last = False  # as machine.py does where a network cannot take it
            return _pass(model, batch, size)
    model._waiting["train"].batches.clear()
    fixed = {_store(one) for one in (*model.parameters(), *model.buffers())}
    saved = bytes_of([*_tensors(batch), *(one for one in held if _store(one) not in fixed)])
    return saved, done.get_total_flops()


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


def _tensors(batch: Any) -> Iterator[Tensor]:
    return (one for one in tree_leaves(batch) if isinstance(one, Tensor))
