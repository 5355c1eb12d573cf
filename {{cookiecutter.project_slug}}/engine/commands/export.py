"""`export`: write a checkpoint's network to network.pt2 or network.onnx, which run without this project."""

import importlib.util
import inspect
import io
import re
import sys
import traceback
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.model_helpers import is_overridden

from engine import lightning_compat
from engine.checkpointing.atomic_write import atomic_folder_update, write_json
from engine.checkpointing.checkpoint_io import load
from engine.datamodule.item_fields import ItemFields
from engine.datamodule.split_datamodule import plain_value
from engine.errors import UsageError, is_own_file, printable
from engine.training.training_check import NO_GRADIENT

Inputs = dict[Any, torch.Tensor]  # of a network, by position or by name

_LABELS = ("classes", "num_classes", "in_channels", "img_size", "preprocessing")


def run(
    trainer: Trainer,
    model: Any,
    data: Any,
    ckpt_path: str | None,
    run_dir: Path,
    *,
    format: tuple[Literal["pt2", "onnx"], ...] = ("pt2",),
) -> None:
    """Writes the network for batches of any size, and labels.json: the dataset's classes and preprocessing.

    Where the items differ in length, it is written for any length, if the network allows. Each file is read again and
    checked against the network in memory on random inputs, 1, 2 and 5 items, and on items of other lengths.

    format: pt2 for torch.export.load, onnx for ONNX Runtime and others; both may be given.

    Raises:
        UsageError: a system without one `network`; a stream that shows no items; the packages for onnx are not there.
        RuntimeError: an exported network answers differently.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if "onnx" in format and missing:
        raise UsageError(f'--format onnx needs {", ".join(missing)}: pip install -e ".[onnx]"')
    if not trainer.is_global_zero:
        return
    if ckpt_path:  # else it has the weights of --init_from
        model.load_state_dict(load(Path(ckpt_path))["state_dict"])
    data.num_workers = 0  # one batch is worth no workers
    batch = data.sample()  # none of a stream
    network, examples = _network_and_inputs(model, next(iter(data.predict_dataloader())) if batch is None else batch)
    if others := [kind for one in examples.values() if (kind := _unfit(one))]:
        raise UsageError(f"export takes networks whose inputs are tensors; {type(network).__name__} gets {others[0]}")
    args, named = _random_inputs(examples, 2)  # a batch of 1 would be taken for fixed
    try:
        with torch.no_grad():
            once, twice = (_tensors(network(*args, **named)) for _ in range(2))
        takes_gradients = any(one.requires_grad for one in once)
    except RuntimeError as error:
        if not (takes_gradients := NO_GRADIENT in str(error)):
            raise
    if takes_gradients:
        what = "takes gradients in its forward, which torch.export cannot follow: call it on the parts"
        raise UsageError(f"{type(network).__name__} {what}")
    if not all(torch.allclose(*pair, equal_nan=True) for pair in zip(once, twice, strict=True)):
        raise UsageError(f"{type(network).__name__} draws random numbers: call torch.export on its parts")
    singles = [_network_and_inputs(model, one)[1] for one in data.batches_of_one(8)]
    program, singles = _export(network, examples, singles)
    for name in dict.fromkeys(format):
        path = run_dir / f"network.{name}"
        with atomic_folder_update(run_dir) as folder:
            write = _write_onnx if name == "onnx" else _write_pt2
            exported = write(program, folder / path.name)
            for args, named in [*(_random_inputs(examples, items) for items in (1, 2, 5)), *map(_call, singles)]:
                with torch.no_grad():
                    pairs = zip(_tensors(exported(*args, **named)), _tensors(network(*args, **named)), strict=True)
                    if not all(torch.allclose(*pair, rtol=1e-3, atol=1e-4, equal_nan=True) for pair in pairs):
                        raise RuntimeError(f"{path.name} answers differently from the network in memory")
        print(*sorted(run_dir.glob(f"{path.name}*")), sep="\n")
    labels = {name: plain for name in _LABELS if (plain := plain_value(data.attribute(name))) is not None}
    path = run_dir / "labels.json"
    write_json(path, labels)
    print(path)


def _network_and_inputs(model: Any, batch: Any) -> tuple[torch.nn.Module, Inputs]:
    """What is exported, and an example of its inputs, by position or by name.

    Of a LightningModule of one's own, `forward` is, with `example_input_array` or else what of a batch it takes.

    Raises: UsageError: there is no `network` or `forward`, or a batch lacks what that takes.
    """
    name = type(model).__name__
    if hasattr(model, "arguments"):
        if model.network is None:
            raise UsageError(f"{name} has no single `network`: call torch.export on its parts")
        model.channels_last = False
        args, named = model.arguments(batch)
        return model.network.to(memory_format=torch.contiguous_format).eval(), dict(enumerate(args)) | named
    if not is_overridden("forward", model):
        raise UsageError(f"export calls {name}.forward, which it does not have: write it")
    inputs = model.example_input_array
    if inputs is None:
        inputs = batch[0] if isinstance(batch, (list, tuple)) and isinstance(batch[0], Mapping) else batch
        try:
            fields = ItemFields(model.forward).split(inputs)
        except UsageError as error:
            raise UsageError(f"{error}: give {name} an example_input_array, the inputs of forward") from None
        return model.eval(), dict(enumerate(fields.args)) | fields.kwargs
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    return model.eval(), inputs if isinstance(inputs, dict) else dict(enumerate(inputs))


def _unfit(value: Any) -> str:
    """What an input is that is no dense tensor of a batch; "" of one."""
    if not (isinstance(value, torch.Tensor) and value.dim()):
        return type(value).__name__
    dense = value.layout is torch.strided and not value.is_nested
    return "" if dense else f"one of layout {value.layout}: let its forward take indices and values"


def _export(network: torch.nn.Module, examples: Inputs, others: list[Inputs]) -> tuple[Any, list[Inputs]]:
    """The exported program, and which of `others`, inputs of one item, it takes.

    The batch may have any size, and so may each dimension in which other inputs differ, as far as the network allows.
    """
    batch = torch.export.Dim("batch")
    differ = {
        key: [at for at in range(1, example.dim()) if any(one[key].shape[at] != example.shape[at] for one in others)]
        for key, example in examples.items()
    }
    lengths = {key: {0: batch} | dict.fromkeys(dims, torch.export.Dim.AUTO) for key, dims in differ.items()}
    args, named = _random_inputs(examples, 2)  # a batch of 1 would be taken for fixed
    try:
        program = _export_for(network, args, named, lengths)
    except UsageError:
        if not any(differ.values()):
            raise
        program = _export_for(network, args, named, {key: {0: batch} for key in examples})
    taken = [one for one in others if _takes(program.module(), one)]
    if len(taken) < len(others):
        sizes = ", ".join(str(tuple(one.shape[1:])) for one in examples.values() if one.dim() > 1)
        what = f"is exported for inputs of {sizes} alone, and items differ in it"
        print(f"{type(network).__name__} {what}: pad what you give it to that", file=sys.stderr)
    return program, taken


def _export_for(network: torch.nn.Module, args: list[Any], named: dict[str, Any], dims: dict[Any, Any]) -> Any:
    shapes: Any = tuple(dims.values())
    if named:  # then those by position have to be named too
        names = [*inspect.signature(network.forward).parameters]
        shapes = {key if key in named else names[key]: one for key, one in dims.items()}
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # torch prints the graph where it stops
        warnings.filterwarnings("ignore", r"The tensor attributes .*_flat_weights")  # nn.LSTM lists its weights twice
        try:
            return torch.export.export(network, tuple(args), named, dynamic_shapes=shapes)
        except Exception as error:  # of many kinds; the network itself has run on these inputs
            refused = error
        if isinstance(refused, lightning_compat.export_error()):
            with suppress(Exception):  # `len(x)` fixes the batch, unless torch reads the source
                return torch.export.export(network, tuple(args), named, dynamic_shapes=shapes, strict=True)
        raise UsageError(_why(type(network).__name__, refused)) from refused


def _why(name: str, error: Exception) -> str:
    """Why torch.export does not take a network: the line of yours that it stops at, and what to write."""
    stack = traceback.extract_tb(error.__traceback__)
    frames = [one for one in stack if is_own_file(one.filename)]
    at = f" at line {frames[-1].lineno} of {Path(frames[-1].filename).name}, `{frames[-1].line}`" if frames else ""
    hint = "an `if` on values becomes torch.where or torch.cond, and parts may be exported alone"
    if any("is_causal" in one.name for one in stack):  # nn.TransformerEncoder compares the mask's values
        hint = "beside a mask, it also needs is_causal: True where the mask is the causal one, else False"
    return f"torch.export cannot follow {name}{at} ({_reason(error)}): {hint}"


def _reason(error: BaseException) -> str:
    """The kind and the first sentence of what an error of torch's came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = re.split(r"[.] |\n| [(]", str(error).strip())[0]
    return f"{type(error).__name__}: {printable(first)[:200]}"


def _takes(module: Any, inputs: Inputs) -> bool:
    """Whether an exported module takes inputs of that size."""
    args, named = _call(inputs)
    try:
        module(*args, **named)
    except (AssertionError, RuntimeError):  # of torch.export, for a size that is fixed
        return False
    return True


def _tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of an output that may be a dict or tuple of them."""
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, (Mapping, list, tuple)):
        raise UsageError(f"export takes networks that return tensors, and this one returns a {type(output).__name__}")
    return [tensor for value in values if value is not None for tensor in _tensors(value)]


def _random_inputs(examples: Inputs, items: int) -> tuple[list[Any], dict[str, Any]]:
    """Inputs by position and by name: numbers around 0, or whole numbers among those of the examples."""
    inputs: Inputs = {}
    for key, example in examples.items():
        shape = (items, *example.shape[1:])
        if example.is_floating_point():
            inputs[key] = torch.randn(shape, dtype=example.dtype)
        else:
            inputs[key] = example.flatten()[torch.randint(example.numel(), shape)]
    return _call(inputs)


def _call(inputs: Inputs) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs by position, and those by name."""
    named = {key: value for key, value in inputs.items() if isinstance(key, str)}
    return [value for key, value in inputs.items() if key not in named], named


def _write_pt2(program: Any, path: Path) -> Any:
    archive = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # of a buffer that is a view, all on the CPU
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.10 reads them from one
        torch.export.save(program, archive)  # to a full disk it would end the process, by abort()
        path.write_bytes(archive.getbuffer())
        return torch.export.load(path).module()


def _write_onnx(program: Any, path: Path) -> Any:
    """One file, or with weights of more than 1.9 GB, which ONNX cannot hold, network.onnx.data beside it."""
    import onnxruntime

    big = sum(weight.nbytes for weight in program.state_dict.values()) > 1.9e9
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "_check_is_size will be removed")  # torch's own call, for nn.LSTM and nn.GRU
        names = ["output"] if len(program.graph_signature.user_outputs) == 1 else None
        try:
            written = torch.onnx.export(program, dynamo=True, verbose=False, output_names=names)
        except Exception as error:
            raise UsageError(f"torch.onnx cannot write the network ({_reason(error)}): --format pt2 can") from error
    assert written is not None
    written.save(path, external_data=big)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]

    def network(*args: torch.Tensor, **kwargs: torch.Tensor) -> list[torch.Tensor]:
        given = dict(zip(inputs, args, strict=False)) | kwargs
        return [*map(torch.from_numpy, session.run(None, {name: tensor.numpy() for name, tensor in given.items()}))]

    return network
