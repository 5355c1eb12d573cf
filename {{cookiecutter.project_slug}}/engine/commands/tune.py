"""`tune`: try learning rates or batch sizes; print and draw them, change nothing."""

from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError
from engine.training import lr_schedulers
from engine.training.step_timer import StepTimer


def run(
    trainer: Trainer, model: Any, data: Any, run_dir: Path, *, what: tuple[Literal["lr", "batch_size"], ...] = ("lr",)
) -> None:
    """Takes a few steps with each rate or size, prints the result and draws it.

    what: what to search: lr (a learning-rate range test), batch_size (doubled until it is no faster or memory is full).

    Raises: UsageError: there is nothing to search with --fast_dev_run; several processes would search for a batch size.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise UsageError("tune takes no --fast_dev_run: it needs some 100 steps")
    if "batch_size" in what and trainer.world_size > 1:
        raise UsageError("tune --what batch_size looks for what one device can do: --devices 1")
    lr_schedulers.keep_constant(model, "tune")
    trainer.limit_val_batches = 0  # type: ignore[attr-defined]
    for name in dict.fromkeys(what):
        (_tune_lr if name == "lr" else _tune_batch_size)(trainer, model, data, run_dir)


def _fit(trainer: Trainer, model: Any, data: Any, callback: Callback, steps: int) -> None:
    """Trains for a few steps, over as many epochs as these take, and restores the weights."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.callbacks = [callback]  # type: ignore[attr-defined]
    trainer.fit_loop.max_epochs = -1
    trainer.fit_loop.epoch_loop.max_steps = trainer.global_step + steps
    try:
        trainer.fit(model, data)
    finally:
        model.load_state_dict(weights)


def _tune_lr(trainer: Trainer, model: Any, data: Any, folder: Path) -> None:
    """Raises the rate over 100 steps and draws the loss (L. Smith, "Cyclical Learning Rates", 2017)."""
    ramp = _RateRamp()
    _fit(trainer, model, data, ramp, 100 * trainer.accumulate_grad_batches)
    if not trainer.is_global_zero:
        return
    rates, losses = ramp.rates[: len(ramp.losses)], torch.tensor(ramp.losses, dtype=torch.float64)
    slope = losses.diff()[5:-1]  # the rates stand equally far apart on a logarithmic scale
    path = folder / "lr_find.png"
    if len(slope) and slope.min() < 0:
        steepest = rates[6 + int(slope.argmin())]
        print(f"the loss falls fastest at --lr {steepest:.2g}: only a hint: look at the curve")
    else:
        print("the loss falls at no learning rate that was tried: look at the curve")
    _draw(rates, losses.tolist(), path, 10, "learning rate", "loss")
    print(path)


def _tune_batch_size(trainer: Trainer, model: Any, data: Any, folder: Path) -> None:
    """Doubles the batch until the items a second grow no more, memory is full, or all the data is one batch."""
    items, before = len(data.split("train")), data.batch_size
    speeds: dict[int, float] = {}
    full = 0
    while len(speeds) < 3 or max(list(speeds.values())[-2:]) > 1.05 * max(list(speeds.values())[:-2]):
        size = min(2 ** (len(speeds) + 3), items)
        if size in speeds:
            break
        timer = StepTimer()
        data.batch_size = size
        try:
            _fit(trainer, model, data, timer, 8)
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            full = size
            break
        speeds[size] = sum(timer.num_items[2:]) / sum(timer.step_seconds())
        print(f"--batch_size {size:<6} {speeds[size]:9.0f} items/s", flush=True)
    data.batch_size = before
    if not speeds:
        raise UsageError(f"there is no memory for a batch of {full}")
    enough = min(size for size, speed in speeds.items() if speed > 0.9 * max(speeds.values()))
    more = f"; memory is full at {full}" if full else f"; all {items} items are one batch" if items in speeds else ""
    print(f"larger batches than --batch_size {enough} are hardly faster{more}: only a hint; the best --lr changes too")
    _draw(list(speeds), list(speeds.values()), folder / "batch_size.png", 2, "batch size", "items a second")
    print(folder / "batch_size.png")


class _RateRamp(Callback):
    """Raises the rate from 1e-6 to 1, tenfold in 16 batches, and smooths the loss; stops when that has grown fourfold.

    Several processes stop together; each smooths the loss of its own batches.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._mean = 0.0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.rates.append(10 ** (6 * len(self.rates) / 99 - 6))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rates[-1]

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        if not outputs:
            raise UsageError(f"tune --what lr: {type(module).__name__}.training_step returns no loss")
        self._mean = 0.9 * self._mean + 0.1 * float(outputs["loss"])
        self.losses.append(self._mean / (1 - 0.9 ** len(self.rates)))
        grown = not self.losses[-1] <= 4 * min(self.losses)  # NaN has too
        done = len(self.rates) == 100
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(grown or done, all=False)


def _draw(x: list[Any], y: list[float], path: Path, base: int, xlabel: str, ylabel: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.add_subplot()
    axes.semilogx(x, y, ".-", base=base)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    figure.savefig(path)
