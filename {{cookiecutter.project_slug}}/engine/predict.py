"""`predict`: what a checkpoint says of each item of the test part, streamed to predictions.csv in the run folder."""

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer


def run(trainer: Trainer, model: LightningModule, data: LightningDataModule, ckpt_path: str, folder: Path) -> None:
    """Writes a row for each item, in order: its index, then the class and all probabilities, or else the output values.

    Raises:
        ValueError: there is more than one process.
    """
    if trainer.world_size > 1:
        raise ValueError("predict writes one file in order and runs in one process: --devices 1")
    path = folder / "predictions.csv"
    part = path.with_suffix(".csv.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        trainer.callbacks.append(_Rows(csv.writer(file)))  # type: ignore[attr-defined]
        trainer.predict(model, data, ckpt_path=ckpt_path, return_predictions=False, weights_only=True)
    part.replace(path)
    print(path)


class _Rows(Callback):
    def __init__(self, writer: Any) -> None:
        self.writer, self.rows = writer, 0

    def on_predict_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        outputs = outputs.detach().float().cpu().reshape(len(outputs), -1)
        classes = getattr(module, "classifies", False)
        if not self.rows:
            names = [f"p{number}" if classes else f"y{number}" for number in range(outputs.shape[1])]
            self.writer.writerow(["index", *(["class"] if classes else []), *names])
        for values in outputs.softmax(1) if classes else outputs:
            label = [int(values.argmax())] if classes else []
            self.writer.writerow([self.rows, *label, *(f"{value:.6g}" for value in values.tolist())])
            self.rows += 1
