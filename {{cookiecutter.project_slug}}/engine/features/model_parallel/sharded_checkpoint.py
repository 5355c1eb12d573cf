"""Checkpoints that are folders, each process having written a part (torch.distributed.checkpoint); with shards.py."""

import io
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from engine.checkpointing.checkpoint_io import refused
from engine.checkpointing.file_names import unsafe
from engine.lightning_compat import load_sharded_checkpoint

# What a list of contents is made of. torch itself would take anything, and run it.
_MADE_OF = {
    *(("torch.distributed.checkpoint.metadata", name) for name in (
        "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata",
        "TensorProperties", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath"),  # the latter is how Python 3.13 calls it
    *(("torch", str(one).removeprefix("torch.")) for one in vars(torch).values() if isinstance(one, torch.dtype)),
}  # fmt: skip


class _Contents(pickle.Unpickler):
    """Reads a list of contents and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # how Python up to 3.11.3 keeps a member of an Enum
            return _member
        if (module, name) not in _MADE_OF:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _member(kind: Any, name: str) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return kind[name]


def contents(path: Path) -> Metadata:
    """What lies in a folder, with the shape of every tensor.

    Raises:
        UsageError: it holds what could run code, here or in a value that is no tensor; or it is no such folder.
    """
    try:
        with (path / ".metadata").open("rb") as file:
            found = _Contents(file).load()
        for index, place in found.storage_data.items():
            if unsafe(place.relative_path) or "/" in place.relative_path or (path / place.relative_path).is_symlink():
                raise pickle.UnpicklingError("it points elsewhere")
            if isinstance(found.state_dict_metadata[index.fqn], BytesStorageMetadata):
                with (path / place.relative_path).open("rb") as file:
                    file.seek(place.offset)
                    _plain(file.read(place.length))
        _plain((path / "meta.pt").read_bytes())
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, RuntimeError) as error:
        raise refused(path, error) from None
    return found


def _plain(value: bytes) -> None:
    torch.load(io.BytesIO(value), map_location="cpu", weights_only=True)


def shapes(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a folder, by name, without what is in them."""
    found = contents(path).state_dict_metadata
    start = "state_dict."
    return {
        name.removeprefix(start): torch.empty(one.size, device="meta")
        for name, one in found.items()
        if name.startswith(start) and not isinstance(one, BytesStorageMetadata)
    }


def load(path: Path) -> dict[str, Any]:
    """A folder as the checkpoint that one process would have written, on the CPU, which has to hold it."""
    contents(path)
    found = load_sharded_checkpoint(path)
    many = sum(name.startswith("optimizer_") for name in found)
    states = [_numbered(found.pop(f"optimizer_{number}")) for number in range(many)]
    return found | {"optimizer_states": states}


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state by the numbers of its parameters, as one process keeps it, instead of by their names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: place for place, name in enumerate(names)}
    groups = [group | {"params": [number[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {number[name]: one for name, one in state["state"].items()}, "param_groups": groups}
