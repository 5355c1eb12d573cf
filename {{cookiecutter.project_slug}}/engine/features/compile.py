"""`--compile`: the network through torch.compile, in place, so that checkpoints fit a network with and without it."""

import statistics
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError


def callbacks(folder: Any, model: Any, data: Any, *, compile: bool = False) -> list[Callback]:
    """compile: train the network through torch.compile; says what that gains a step."""
    return [Compile()] if compile else []


class Compile(Callback):
    """Compiles the network, and says how much that helps.

    Ten steps are taken with it and ten without it; which ones follows from their number, so that a resumed run takes
    the same. Raises: UsageError: a system without one `network`.
    """

    changes_step = True  # `plan` times with it

    def __init__(self) -> None:
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self._plain, self._began = False, 0.0

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not isinstance(network := getattr(module, "network", None), torch.nn.Module):
            raise UsageError(f"--compile: {type(module).__name__} is a system without one `network`; compile its parts")
        if stage == "fit":
            network.compile()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        number = trainer.fit_loop.total_batch_idx
        if (plain := 20 <= number < 30) != self._plain:
            self._plain = plain
            torch.compiler.set_stance("force_eager" if plain else "default")
            if not plain and all(self.times.values()) and trainer.is_global_zero:
                compiled, eager = (statistics.median(self.times[key]) for key in (False, True))
                no = "; it does not help here" if compiled > 0.95 * eager else ""
                print(f"--compile: a step takes {compiled / eager:.2f} times as long with it{no}")
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if 10 <= trainer.fit_loop.total_batch_idx < 30:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.times[self._plain].append(time.perf_counter() - self._began)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        torch.compiler.set_stance("default")
