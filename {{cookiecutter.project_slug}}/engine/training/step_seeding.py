"""SeedEachStep: seeds the random draws of each step."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from engine.datamodule.seeding import reseed
from engine.launch.data_parallel_rank import data_parallel_rank


class SeedEachStep(Callback):
    """Seeds each step (dropout, noise) from (seed, step, rank), so that a resumed run repeats its draws."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        reseed("train", self.seed, trainer.fit_loop.total_batch_idx, data_parallel_rank(trainer).rank)

    def on_validation_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        reseed("val", self.seed, batch_idx, data_parallel_rank(trainer).rank)

    def on_test_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        reseed("test", self.seed, batch_idx, data_parallel_rank(trainer).rank)

    def on_predict_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        reseed("predict", self.seed, batch_idx, data_parallel_rank(trainer).rank)
