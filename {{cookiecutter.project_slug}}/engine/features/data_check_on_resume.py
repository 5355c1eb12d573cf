"""data.json in the run folder: classes and preprocessing of the training data; a resumed run with others is refused.

A vocabulary or a mean is computed from the files: after a change of the files, a trained network would get other
numbers for the same items. No flag; without this file nothing is written or compared.
"""

import json
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from engine.checkpointing.run_folder import write_atomically
from engine.errors import UsageError


def callbacks(run_dir: Path, model: Any, data: Any) -> list[Callback]:
    """Compares the dataset with data.json of the run; another dataset class is not compared.

    Raises: UsageError: `classes`, or an entry of the dict `preprocessing`, differs from the one in data.json.
    """
    preprocessing = data.attribute("preprocessing")
    facts = {"classes": data.attribute("classes"), **(preprocessing if isinstance(preprocessing, dict) else {})}
    try:
        text = json.dumps({"dataset": data.dataset_class.__name__} | facts, indent=1, ensure_ascii=False)
    except TypeError:
        return []  # not JSON
    current, path = json.loads(text), run_dir / "data.json"
    if path.exists():
        saved = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in saved | current if saved.get(name) != current.get(name)]
        if changed and saved["dataset"] == current["dataset"]:
            raise UsageError(
                f"{current['dataset']} has other {', '.join(changed[:3])} than when the run was trained ({path}): "
                "its files or flags have changed; restore them, or start a new run"
            )
    return [WriteDataFile(path, text)] if facts.keys() - {"classes"} or facts["classes"] else []


class WriteDataFile(Callback):
    """Writes data.json when training starts, once per run."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero and not self.path.exists():
            write_atomically(self.path, self.text + "\n")
