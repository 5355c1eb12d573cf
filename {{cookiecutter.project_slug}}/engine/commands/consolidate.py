"""`consolidate`: turn a sharded checkpoint into one ordinary file."""

from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer

from engine.checkpointing.checkpoint_io import DurableCheckpointIO, check_weights_fit, load
from engine.errors import UsageError


def run(trainer: Trainer, model: Any, ckpt_path: str | None) -> None:
    """Writes NAME.whole.ckpt beside the folder NAME.ckpt; weights, optimiser and progress have to fit into memory.

    Raises: UsageError: it is one file already, or is not of this network.
    """
    if ckpt_path is None:
        raise UsageError("consolidate takes --ckpt_path, a sharded checkpoint")
    path = Path(ckpt_path)
    if not path.is_dir():
        raise UsageError(f"--ckpt_path {path} is one file already")
    if trainer.is_global_zero:
        checkpoint = load(path)
        check_weights_fit(model, checkpoint["state_dict"])
        target = path.with_suffix(".whole.ckpt")
        DurableCheckpointIO().save_checkpoint(checkpoint, target)
        print(target)
