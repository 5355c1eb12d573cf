"""data.json in the run folder: the classes and the `preprocessing` of the data, and whether they are still the same.

A vocabulary or a mean follows from the files; changed files would give a trained network other numbers for the same
things without a word. It brings no flag; delete this file and nothing is kept or compared.
"""

import json
import os
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError


def callbacks(folder: Path, model: Any, data: Any) -> list[Callback]:
    """It asks for nothing.

    Raises: UsageError: the run was trained on other facts. Another dataset than the run's is not compared.
    """
    preprocessing = data.attribute("preprocessing")
    facts = {"classes": data.attribute("classes"), **(preprocessing if isinstance(preprocessing, dict) else {})}
    try:
        text = json.dumps({"dataset": data.dataset_class.__name__} | facts, indent=1, ensure_ascii=False)
    except TypeError:
        return []  # of a kind that JSON does not know
    now, path = json.loads(text), folder / "data.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in before | now if before.get(name) != now.get(name)]
        if other and before["dataset"] == now["dataset"]:
            raise UsageError(
                f"{now['dataset']} has other {', '.join(other[:3])} than when the run was trained ({path}): "
                "its files or flags have changed; put them back, or train anew"
            )
    return [DataFacts(path, text)] if facts.keys() - {"classes"} or facts["classes"] else []


class DataFacts(Callback):
    """Writes the file when training begins."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero and not self.path.exists():
            part = self.path.with_suffix(".json.part")
            part.write_text(self.text + "\n", encoding="utf-8")
            os.replace(part, self.path)
