"""Memory and FLOPs of a training step, counted on torch's fake tensors, which have shapes but no data."""

import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine import lightning_compat
from engine.cli import features_and_commands
from engine.cli.settings import Settings
from engine.datamodule.item_fields import num_items
from engine.errors import UsageError
from engine.training import lr_schedulers

FakeTensorMode, _fake_errors = lightning_compat.fake_tensors()
# What a network raises that reads values, or whose operations are not implemented for fake tensors.
_VALUE_ERRORS: tuple[type[Exception], ...] = (*_fake_errors, NotImplementedError)


class StepCosts(NamedTuple):
    """The costs of a step on one device that does all of it; in bytes unless stated otherwise.

    parameters, trainable: numbers of parameters.
    layer, largest: the name of the layer with the most parameters, and how many these are.
    activations: a constant, and the increase per item: the batch and what autograd saves for the backward pass, without
        the weights; on a GPU the batch of the step before, too, if its gradients are checked. None where it cannot be
        counted, for the reason in `unknown`.
    workspace: what else is allocated at the peak, per item: temporary results and gradients. What a kernel allocates
        itself is not seen.
    flops: of the matrix products and convolutions of a forward pass, per item (a multiply-add is two); 0 if unknown.
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
    unknown: str


def count(build: Callable[[], Any], batch: Any, precision: str, device: str, checks_gradients: bool) -> StepCosts:
    """Builds the network without its weights and counts what a training step costs.

    batch: of a few items, on the CPU. precision: "32-true", "bf16-mixed" ... device: "cpu" or "cuda".

    Raises: UsageError: the network reads values of tensors in its constructor, and these have none.
    """
    plugin = _precision_plugin(precision, device)
    with torch.device("meta"):
        model = plugin.convert_module(build())
    with FakeTensorMode() as mode, torch.device(device):
        _move_to_fake(model, device)  # which kernels run, and what they save, depends on the device
        fakes = apply_to_collection(batch, Tensor, lambda tensor: mode.from_tensor(tensor).to(device))
        batch = plugin.convert_input(fakes)
        parameters = list(model.parameters())
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        sizes = {name: _num(module.parameters(recurse=False)) for name, module in model.named_modules()}
        layer = max(sizes, key=lambda name: sizes[name])
        activations, workspace, flops, unknown = None, 0.0, 0.0, ""
        try:
            (small, _, less), (large, beside, more) = (_count_pass(model, batch, size, plugin) for size in (64, 128))
            activations, workspace = (2.0 * small - large, (large - small) / 64), beside / 128
            flops = (more - less) / 64
            each = bytes_of(_tensors(batch)) / num_items(model, batch)
            if device == "cpu":  # that of the step before is there until the next one is
                workspace = max(workspace, 2 * each - activations[1])
            elif checks_gradients:  # GradientGuard keeps that of the step before until it has read its check
                activations = activations[0], activations[1] + each
        except _VALUE_ERRORS as error:
            said = "a step that reads values (masks) is not traced" if isinstance(error, _fake_errors) else str(error)
            unknown = f"{type(model).__name__}: {' '.join(said.split())[:90]}"
        return StepCosts(
            parameters=_num(parameters),
            trainable=_num(trainable),
            weights=bytes_of(parameters),
            buffers=bytes_of(model.buffers()),
            gradients=bytes_of(trainable),
            optimizer=_optimizer_state(model),
            layer=layer.removeprefix("network.") or type(model).__name__,
            largest=sizes[layer],
            activations=activations,
            workspace=workspace,
            flops=flops,
            unknown=unknown,
        )


def build_meta(settings: Settings, data: Any, build_model: Callable[..., Any]) -> Any:
    """The network in its interface, ready to be trained; the default device has to be "meta".

    Raises: UsageError: the network reads values.
    """
    try:  # as with a checkpoint, no pretrained weights are downloaded
        model = build_model(settings._replace(ckpt_path=Path()), data)
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensor" not in str(error):
            raise
        name, reason = settings.network.name, str(error).partition("\n")[0]
        what = f"plan builds {name} on the meta device, where tensors have no values, and {name} reads some ({reason})"
        raise UsageError(f"{what}: compute with Python's numbers or NumPy there") from error
    lr_schedulers.keep_constant(model, "plan")
    convolves = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
    model.channels_last = convolves and settings.arguments["hardware"]["channels_last"]
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    model.trainer = Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **off)
    with torch.device("cpu"):  # a feature may read the data
        callbacks = features_and_commands.load_features(Path(), model, data, settings.arguments)
    for callback in callbacks:
        if getattr(callback, "changes_parameters", False):
            callback.setup(model.trainer, model, "fit")
    for metric in model.metrics.values():  # they read values, which fake tensors lack, and need little memory
        metric.update = metric.add = lambda *args, **kwargs: None  # type: ignore[assignment]
    model._mean_weight = len  # likewise: it reads the values of the targets, as a check of the first batch does
    model._output_checked = True
    return model.train()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Memory of tensors, each storage counted once."""
    return sum({_storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _num(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _precision_plugin(name: str, device: str) -> Any:
    if name.endswith("mixed"):
        return MixedPrecision(name, device)  # type: ignore[arg-type]
    return HalfPrecision(name) if "16" in name else DoublePrecision() if "64" in name else Precision()  # type: ignore[arg-type]


def _move_to_fake(model: nn.Module, device: str) -> None:
    """Replaces the tensors of a module by fake ones on a device; shared ones stay shared."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        parameters, buffers = module.named_parameters(recurse=False), module.named_buffers(recurse=False)
        for name, tensor in [*parameters, *buffers, *vars(module).items()]:
            if isinstance(tensor, Tensor):
                if id(tensor) not in made:
                    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                    learns = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = tensor, nn.Parameter(fake, tensor.requires_grad) if learns else fake
                setattr(module, name, made[id(tensor)][1])


class _LiveBytes(lightning_compat.dispatch_mode()):  # type: ignore[misc]
    """Bytes of the tensors that are created within it: at the moment, and at most since `most` was set."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        # References to earlier storages, so that no new one gets the id of an old one.
        self.known: dict[int, Any] = {_storage_id(tensor): tensor.untyped_storage() for tensor in before}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in _tensors(results):
            if (key := _storage_id(tensor)) not in self.known:
                storage = tensor.untyped_storage()
                self.known[key] = None
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return results

    def _free(self, key: int, size: int) -> None:
        self.known.pop(key, None)
        self.now -= size


def _count_pass(model: Any, batch: Any, size: int, plugin: Any) -> tuple[int, float, int]:
    """A forward and a backward pass over `size` items: bytes of the batch and of what the forward pass keeps for the
    backward pass; bytes held beside these at the most; operations of the forward pass.

    plugin: Lightning's for the precision.
    """
    if type(model).training_step.__qualname__ != "MInterface.training_step":
        raise NotImplementedError("its own training_step is not traced")
    if not _tensors(batch):
        raise NotImplementedError("a batch without tensors is not traced")
    items = num_items(model, batch)
    resized = lambda one: one.new_empty((one.shape[0] * size // items, *one.shape[1:])) if one.dim() else one  # noqa: E731
    batch = apply_to_collection(batch, Tensor, resized)
    with _LiveBytes([*model.parameters(), *model.buffers(), *_tensors(batch)]) as live:
        try:
            with FlopCounterMode(display=False) as flops, plugin.forward_context():
                loss = model.step(batch, "train")
        except (RuntimeError, ValueError) as error:
            if "autograd.grad" in str(error):  # the FLOP counter does not go with it
                raise NotImplementedError("a network that takes gradients itself is not traced") from error
            if not model.channels_last or isinstance(error, _VALUE_ERRORS):
                raise
            model.channels_last = False  # as in a run, if a network does not support it
            return _count_pass(model, batch, size, plugin)
        model._metric_buffers["train"].batches.clear()
        saved, forward = live.now, live.most
        live.most = live.now
        loss.backward()
    model.zero_grad()
    gradients = bytes_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    most = max(forward + gradients, live.most)  # the previous gradients are freed before the backward pass
    return saved + bytes_of(_tensors(batch)), max(0.0, most - gradients - saved), flops.get_total_flops()


def _optimizer_state(model: Any) -> int:
    """Bytes of the optimisers' state after a step."""
    made, total = model.configure_optimizers(), 0
    for entry in made[0] if isinstance(made, tuple) else made if isinstance(made, list) else [made]:
        optimizer = entry["optimizer"] if isinstance(entry, dict) else entry
        for group in optimizer.param_groups:
            alike = {(one.shape, one.dtype): one for one in group["params"]}  # these have as much of it
            for parameter in alike.values():  # one by one: the state is created before values are read, which raises
                parameter.grad = torch.empty_like(parameter)
                optimizer.param_groups = [group | {"params": [parameter], "fused": False, "foreach": False}]
                with suppress(*_VALUE_ERRORS):
                    optimizer.step()
            sizes = {key: bytes_of(_tensors([*optimizer.state[one].values()])) for key, one in alike.items()}
            total += sum(sizes[one.shape, one.dtype] for one in group["params"])
    return total


def _storage_id(tensor: Tensor) -> int:
    return id(tensor.untyped_storage())  # of views the same, as long as the storage lives


def _tensors(collection: Any) -> list[Tensor]:
    found: list[Tensor] = []
    apply_to_collection(collection, Tensor, found.append)
    return found
