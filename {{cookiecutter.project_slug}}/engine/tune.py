"""`tune`: a learning-rate range test, printed and drawn as lr_find.png in the run folder; nothing is changed."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.tuner import Tuner


def run(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, ckpt_path: str | None, folder: Path
) -> None:
    """Raises the rate over 100 steps and shows the loss (L. Smith, "Cyclical Learning Rates", 2017)."""
    finder = Tuner(trainer).lr_find(model, datamodule=data, update_attr=False)
    assert finder is not None
    figure: Any = finder.plot(suggest=True)
    figure.savefig(folder / "lr_find.png")
    print(
        f"the loss falls fastest at --lr {finder.suggestion() or float('nan'):.2g}: a hint, no more; look at the curve"
    )
    print(folder / "lr_find.png")
