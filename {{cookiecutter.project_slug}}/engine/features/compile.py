"""`--compile`: trains the network through torch.compile. Checkpoints fit with and without it."""

import statistics
import time
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError


def callbacks(run_dir: Any, model: Any, data: Any, *, compile: bool = False) -> list[Callback]:
    """compile: train the network through torch.compile, and print how much faster a step is."""
    return [Compile()] if compile else []


class Compile(Callback):
    """Compiles `module.network` in place, times steps 10 to 19 compiled and 20 to 29 eager, and prints the ratio.

    Raises: UsageError: the module has no single `network`.
    """

    changes_step = True  # `plan` times with it

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"default": [], "force_eager": []}  # per step, by stance
        self._stance, self._start = "default", 0.0

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not isinstance(network := getattr(module, "network", None), torch.nn.Module):
            raise UsageError(f"--compile: {type(module).__name__} has no single `network`; compile its networks itself")
        if stage == "fit":
            network.compile()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        stance: Literal["force_eager", "default"] = (
            "force_eager" if 20 <= trainer.fit_loop.total_batch_idx < 30 else "default"
        )
        if stance != self._stance:
            self._stance = stance
            torch.compiler.set_stance(stance)
            if stance == "default" and all(self.seconds.values()) and trainer.is_global_zero:
                compiled, eager = map(statistics.median, self.seconds.values())
                no_gain = "; it does not help here" if compiled > 0.95 * eager else ""
                print(f"--compile: a step takes {compiled / eager:.2f} times as long with it{no_gain}")
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if 10 <= trainer.fit_loop.total_batch_idx < 30:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.seconds[self._stance].append(time.perf_counter() - self._start)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        torch.compiler.set_stance("default")
