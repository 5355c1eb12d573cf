"""Sharded checkpoints: folders written by torch.distributed.checkpoint, one file per process."""

import io
import pickle
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from engine.checkpointing.checkpoint_io import check_sums, refused
from engine.checkpointing.safe_file_names import unsafe_reason
from engine.errors import UsageError
from engine.lightning_compat import load_sharded_checkpoint

# The only classes and functions that a .metadata file may name. torch itself would unpickle any, which can run code.
_ALLOWED = {
    *(("torch.distributed.checkpoint.metadata", name) for name in (
        "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata",
        "TensorProperties", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath"),  # the latter is its name in Python 3.13
    *(("torch", str(dtype).removeprefix("torch.")) for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)),
}  # fmt: skip


class _MetadataUnpickler(pickle.Unpickler):
    """Loads nothing but _ALLOWED."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # how Python up to 3.11.3 pickles a member of an Enum
            return _enum_member
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _enum_member(enum: Any, name: str) -> Any:
    if not (isinstance(enum, type) and issubclass(enum, Enum)):
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return enum[name]


def read_metadata(path: Path) -> Metadata:
    """The metadata of a sharded checkpoint: names, shapes and places of all tensors.

    Raises: UsageError: the metadata or a value that is no tensor could run code, or the folder is no checkpoint.
    """
    try:
        with (path / ".metadata").open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        for index, info in metadata.storage_data.items():
            name = info.relative_path
            if unsafe_reason(name) or "/" in name or (path / name).is_symlink():
                raise pickle.UnpicklingError("it points outside of the folder")
            if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
                with (path / name).open("rb") as file:
                    file.seek(info.offset)
                    _check_weights_only(file.read(info.length))
        _check_weights_only((path / "meta.pt").read_bytes())
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, RuntimeError) as error:
        raise refused(path, error) from None
    return metadata


def check_shards(path: Path, rank: int = 0, world_size: int = 1) -> None:
    """Compares the check sums in the files of a sharded checkpoint; of several processes, each does some of the files.

    Raises: UsageError: one is damaged.
    """
    pieces = read_metadata(path).storage_data.values()
    for name in sorted({piece.relative_path for piece in pieces})[rank::world_size]:
        with (path / name).open("rb") as file:
            for piece in (one for one in pieces if one.relative_path == name):
                file.seek(piece.offset)
                try:
                    check_sums(io.BytesIO(file.read(piece.length)))
                except (UsageError, zipfile.BadZipFile) as error:
                    raise UsageError(f"{path} is refused: in {name}, {error}") from None


def _check_weights_only(data: bytes) -> None:
    torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def empty_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a sharded checkpoint by name, as tensors on the meta device."""
    entries, prefix = read_metadata(path).state_dict_metadata, "state_dict."
    sizes = {name: one.size for name, one in entries.items() if not isinstance(one, BytesStorageMetadata)}
    sizes = {name.removeprefix(prefix): size for name, size in sizes.items() if name.startswith(prefix)}
    return {name: torch.empty(size, device="meta") for name, size in sizes.items()}


def load(path: Path) -> dict[str, Any]:
    """A sharded checkpoint as the one that a single process would have written, on the CPU."""
    check_shards(path)
    checkpoint = load_sharded_checkpoint(path)
    count = sum(key.startswith("optimizer_") for key in checkpoint)
    states = [_key_by_index(checkpoint.pop(f"optimizer_{number}")) for number in range(count)]
    return checkpoint | {"optimizer_states": states}


def _key_by_index(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer state keyed by parameter index, as torch.optim keeps it, instead of by parameter name."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    index = {name: position for position, name in enumerate(names)}
    groups = [group | {"params": [index[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {index[name]: value for name, value in state["state"].items()}, "param_groups": groups}
