"""Reads the fingerprint of the data that a run was trained on, from its data.json or from a checkpoint."""

from pathlib import Path
from typing import Any

from engine.checkpointing import checkpoint_io, run_folder
from engine.checkpointing.atomic_write import read_json

KEY = "data"  # in a checkpoint
FILE = "data.json"


def read(ckpt_path: Path | None) -> dict[str, Any]:
    """The `SplitDataModule.record` of the run that wrote a checkpoint; {} where it kept none.

    From the run folder, or else from a checkpoint that was moved.
    """
    if ckpt_path is None:
        return {}
    if (run := run_folder.run_of(ckpt_path)) is None:
        return checkpoint_io.load(ckpt_path).get(KEY, {})
    if not (run / FILE).is_file():
        return {}
    record: dict[str, Any] = read_json(run / FILE, {})
    if "preprocessing" in record or "splits" in record:
        return record
    # Version 0.1 wrote the entries of `preprocessing` beside the others.
    kept = {name: record.pop(name, None) for name in ("dataset", "classes")}
    return kept | {"preprocessing": record or None}
