"""Checkpoints that a kill cannot break and a stranger cannot make run code."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, makes it durable, and only then gives it its name."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves; at every moment `path` is the old file or the new one, whole."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Loads plain values and tensors; a file that holds anything else is refused."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


def flags_of(path: Path) -> dict[str, Any]:
    """The flags of the run that wrote a checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["hyper_parameters"]
