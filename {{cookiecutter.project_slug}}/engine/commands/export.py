"""`export`: a checkpoint's network as network.pt2 or network.onnx, which run without this project."""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Trainer

from engine.checkpointing.checkpoint_io import load
from engine.errors import UsageError
from engine.lightning_compat import export_user_error

_LABELS = ("classes", "num_classes", "in_channels", "img_size", "preprocessing")


def run(
    trainer: Trainer,
    model: Any,
    data: Any,
    ckpt_path: str,
    run_dir: Path,
    *,
    format: tuple[Literal["pt2", "onnx"], ...] = ("pt2",),
) -> None:
    """Writes the network for batches of any size, and labels.json: what the data says of classes and preprocessing.

    Each file is read again and checked against the network in memory on random inputs, 1, 2 and 5 items.

    Args:
        format: pt2 for torch.export.load, onnx for everybody else; both may be given.

    Raises:
        UsageError: a system without one `network`; a stream that shows no items; the packages for onnx are not there.
        RuntimeError: an exported network answers differently.
    """
    if "onnx" in format and (gone := [name for name in ("onnx", "onnxscript", "onnxruntime") if not _there(name)]):
        raise UsageError(f'--format onnx needs {", ".join(gone)}: pip install -e ".[onnx]"')
    if not trainer.is_global_zero:
        return
    model.load_state_dict(load(Path(ckpt_path))["state_dict"])
    if getattr(model, "network", None) is None:
        raise UsageError(f"{type(model).__name__} is a system without one `network`; export its parts by hand")
    model.channels_last = False
    network = model.network.to(memory_format=torch.contiguous_format).eval()
    data.num_workers = 0  # one batch is worth no workers
    batch = data.sample()  # none of a stream
    args, named = model.arguments(next(iter(data.test_dataloader())) if batch is None else batch)
    like = dict(enumerate(args)) | named
    args, named = _inputs(like, 2)  # a batch of 1 would be taken for fixed
    dim = {0: torch.export.Dim("batch")}
    shapes: Any = dict.fromkeys(named, dim) if named else tuple(dim for _ in args)
    program = _export(network, tuple(args), named, shapes)
    for one in dict.fromkeys(format):
        path = run_dir / f"network.{one}"
        exported = _write_onnx(program, path) if one == "onnx" else _write_pt2(program, path)
        for items in (1, 2, 5):
            args, named = _inputs(like, items)
            with torch.no_grad():
                if not torch.allclose(exported(*args, **named), network(*args, **named), rtol=1e-3, atol=1e-4):
                    raise RuntimeError(f"{path} answers differently from the network in memory")
        print(*sorted(run_dir.glob(f"{path.name}*")), sep="\n")
    labels = {name: plain for name in _LABELS if (plain := _plain(data.attribute(name))) is not None}
    path = run_dir / "labels.json"
    path.write_text(json.dumps(labels, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path)


def _export(network: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any], shapes: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The tensor attributes .*_flat_weights")  # nn.LSTM lists its weights twice
        try:
            return torch.export.export(network, args, named, dynamic_shapes=shapes)
        except export_user_error():  # `len(x)` fixes the batch, unless torch reads the source
            return torch.export.export(network, args, named, dynamic_shapes=shapes, strict=True)


def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _inputs(like: dict[Any, torch.Tensor], items: int) -> tuple[list[Any], dict[str, Any]]:
    """Random inputs: numbers about 0, or whole numbers among those of `like`; by place and by name."""
    drawn = {}
    for name, one in like.items():
        if one.is_floating_point():
            drawn[name] = torch.randn(items, *one.shape[1:], dtype=one.dtype)
        else:
            drawn[name] = one.flatten()[torch.randint(one.numel(), (items, *one.shape[1:]))]
    return [one for name, one in drawn.items() if isinstance(name, int)], {
        name: one for name, one in drawn.items() if isinstance(name, str)
    }


def _write_pt2(program: Any, path: Path) -> Any:
    torch.export.save(program, path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.10 reads them from one
        return torch.export.load(path).module()


def _write_onnx(program: Any, path: Path) -> Any:
    """One file, or with weights of more than 1.9 GB, which ONNX cannot hold, network.onnx.data beside it."""
    import onnxruntime

    big = sum(one.numel() * one.element_size() for one in program.state_dict.values()) > 1.9e9
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "_check_is_size will be removed")  # torch's own call, for nn.LSTM and nn.GRU
        written = torch.onnx.export(program, dynamo=True, verbose=False, output_names=["output"])
    assert written is not None
    written.save(path, external_data=big)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def answer(*args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, args, strict=False)) | kwargs
        return torch.from_numpy(session.run(None, {name: one.numpy() for name, one in given.items()})[0])

    return answer


def _plain(value: Any) -> Any:
    """A value as JSON holds it, None where it cannot be."""
    try:
        return json.loads(json.dumps(value.tolist() if hasattr(value, "tolist") else value))
    except TypeError:
        return None
