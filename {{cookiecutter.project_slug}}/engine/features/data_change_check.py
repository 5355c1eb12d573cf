"""`--new_data`: a checkpoint is resumed and measured on the data it was trained on, unless this flag is given.

An item more in a table or a folder moves others into another split: a network would be tested on what it has learnt.
And a vocabulary or a mean, which is computed from the files, would give other numbers for the same items. So a run
keeps in data.json and in its checkpoints what tells them apart. Without this file nothing is kept or compared.
"""

import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import LambdaCallback

from engine.checkpointing import data_record
from engine.checkpointing.atomic_write import write_json
from engine.datamodule.split_datamodule import SplitDataModule
from engine.datamodule.splits import difference
from engine.errors import UsageError


def callbacks(run_dir: Path, data: Any, *, new_data: bool = False) -> list[LambdaCallback]:
    """Compares the dataset with the one of the checkpoint, if of the same class; writes data.json, from which `predict`
    reads new files without the training data.

    new_data: validate, test or predict with a checkpoint although its dataset has changed since training.

    Raises: UsageError: the classes, the preprocessing or the items of a split have changed.
    """
    if not isinstance(data, SplitDataModule) or data.restored:
        return []
    record = data.record
    if data.kept and data.kept["dataset"] == record["dataset"] and (changed := _changes(data.kept, record)):
        said = f"{record['dataset']} is not the data that the checkpoint was trained on: {'; '.join(changed)}"
        if not new_data:
            ways = "restore its files and flags or start a new run; validate, test and predict take it with --new_data"
            raise UsageError(f"{said}. Ways on: {ways}")
        print(f"--new_data: {said}", file=sys.stderr)

    def write(trainer: Any, module: Any, stage: str) -> None:
        if stage == "fit" and new_data:
            hint = "training goes on with the data it began with"
            raise UsageError(f"--new_data is for validate, test and predict: {hint}")
        if stage == "fit" and trainer.is_global_zero:
            write_json(run_dir / data_record.FILE, record)

    def keep(trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[data_record.KEY] = record

    return [LambdaCallback(setup=write, on_save_checkpoint=keep)]


def _changes(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed between two records, as far as both have it."""
    changed = []
    if kept["classes"] != now["classes"]:
        names, known = now["classes"] or [], kept["classes"] or []
        differing = [str(name) for name in [*known, *names] if (name in known) != (name in names)]
        changed.append(f"other classes ({', '.join(differing[:5])})" if differing else "its classes in another order")
    values = (one["preprocessing"] for one in (kept, now))
    old, new = (value if isinstance(value, dict) else {"preprocessing": value} for value in values)
    splits = kept.get("splits", {})
    named = old | new if splits else old  # version 0.1 did not name all that there is
    if differing := [name for name in named if old.get(name) != new.get(name)]:
        changed.append(f"other {', '.join(differing[:3])}")
    for name in (one for one in now["splits"] if one != "stratify"):
        before, after = splits.get(name), now["splits"][name]
        if splits and name in ("train", "val", "test") and (before is None) != (after is None):
            changed.append(f"the {name} split {'is new' if after else 'is missing'}")
        elif before and after and (how := difference(before, after)):
            changed.append(f"the {name} split {how}")
    return changed
