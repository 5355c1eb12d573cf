"""Learning-rate schedules: a factor of `lr` that follows from the share of training done; and reduce-on-plateau."""

import math
from functools import cache, partial
from typing import Annotated, Any, Literal, get_args

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from engine.cli import discovery
from engine.cli.discovery import DottedPath
from engine.errors import UsageError

_OverRun = Literal["cosine", "linear", "polynomial", "one_cycle"]  # need the number of steps of the run
_OverEpochs = Literal["cosine_restarts", "step", "multistep", "exponential"]
_OVER_RUN, _OVER_EPOCHS = get_args(_OverRun), get_args(_OverEpochs)
_find = cache(partial(discovery.find, "model"))  # a schedule of one's own, asked at each step
_USED_BY = {  # of a flag, the schedules that it says something to
    "lr_gamma": ("step", "multistep", "exponential", "plateau"),
    "lr_every": ("step", "exponential", "cosine_restarts"),
    "lr_milestones": ("multistep",),
    "lr_power": ("polynomial",),
    "lr_restart_factor": ("cosine_restarts",),
    "lr_end": ("cosine", "linear", "polynomial"),
}


def lr_factor(
    step: int,
    epochs: float,
    total: float,
    warmup_end: float,
    steps_per_epoch: float,
    *,
    lr_scheduler: _OverRun | _OverEpochs | Literal["constant", "plateau"] | DottedPath = "cosine",
    warmup_steps: Annotated[int, ">= 0"] = 0,
    warmup_epochs: Annotated[float, ">= 0"] = 0.0,
    lr_interval: Literal["step", "epoch"] = "step",
    lr_gamma: Annotated[float, "> 0"] = 0.1,
    lr_every: Annotated[float, "> 0"] = 10.0,
    lr_milestones: tuple[Annotated[float, ">= 0"], ...] = (),
    lr_power: Annotated[float, ">= 0"] = 1.0,
    lr_restart_factor: Annotated[float, ">= 1"] = 1.0,
    lr_end: Annotated[float, ">= 0", "<= 1"] = 0.0,
) -> float:
    """The factor of `lr` at an optimizer step: in 0..1, or the value of a custom schedule.

    Sources: cosine and its restarts, Loshchilov and Hutter, "SGDR", 2017; one_cycle, Smith, "Super-convergence", 2018
    (from lr/25 up over 0.3 of the run and down to lr/250,000, by half cosines; the momentum stays).

    step: optimizer steps taken.
    epochs: epochs done, with the fraction of the current one.
    total: epochs of the whole run, infinite where it has no end.
    warmup_end: the epochs after which the warm-up ends.
    steps_per_epoch: optimizer steps of an epoch.
    lr_scheduler: schedule of the learning rate after the warm-up. Or a dotted path to a function of the share of
        training done, in 0..1, which returns a factor of lr.
    warmup_steps: optimizer steps (not epochs) over which the learning rate rises to lr.
    warmup_epochs: length of the warm-up in epochs, instead of warmup_steps.
    lr_interval: change the learning rate at every step, or once per epoch.
    lr_gamma: factor of each decay of step, multistep and plateau (at the 4th validation in a row without a better
        val_loss), and of exponential over lr_every epochs.
    lr_every: epochs between two decays (step, exponential), or before the first restart.
    lr_milestones: epochs at which multistep decays.
    lr_power: exponent of polynomial.
    lr_restart_factor: length of each cycle of cosine_restarts, relative to the one before.
    lr_end: final learning rate of cosine, linear and polynomial, as a share of lr.
    """
    if lr_interval == "epoch":
        begun = math.floor(epochs + 1e-9)
        step, epochs = step - round((epochs - begun) * steps_per_epoch), begun
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if epochs < warmup_epochs - 1e-9:
        return (epochs * steps_per_epoch + 1) / (warmup_epochs * steps_per_epoch + 1)
    done = max(0.0, min(1.0, (epochs - warmup_end) / max(1 / steps_per_epoch, total - warmup_end)))
    if "." in lr_scheduler:
        return _find(lr_scheduler).load()(done)
    if lr_scheduler == "cosine":
        return lr_end + (1 - lr_end) * _half_cosine(done)
    if lr_scheduler in ("linear", "polynomial"):
        return lr_end + (1 - lr_end) * (1.0 - done) ** (lr_power if lr_scheduler == "polynomial" else 1.0)
    if lr_scheduler == "one_cycle":
        low, end = 1 / 25, 1 / 250_000
        return low + (1 - low) * (1 - _half_cosine(done / 0.3)) if done < 0.3 else (
            end + (1 - end) * _half_cosine((done - 0.3) / 0.7))  # fmt: skip
    if lr_scheduler == "step":
        return lr_gamma ** math.floor(epochs / lr_every + 1e-9)
    if lr_scheduler == "multistep":
        return lr_gamma ** sum(epochs + 1e-9 >= one for one in lr_milestones)
    if lr_scheduler == "exponential":
        return lr_gamma ** (epochs / lr_every)
    if lr_scheduler == "cosine_restarts":
        return _half_cosine(_restarted(max(0.0, epochs - warmup_end), lr_every, lr_restart_factor))
    return 1.0


def _restarted(epochs: float, length: float, factor: float) -> float:
    """The share that is done, in 0..1, of the cycle that `epochs` falls in; each is `factor` >= 1 times as long."""
    lengths = (epochs + 1e-9) / length
    if factor == 1:
        return max(0.0, epochs / length - math.floor(lengths))
    number = math.floor(math.log1p(lengths * (factor - 1)) / math.log(factor))
    begun = length * (factor**number - 1) / (factor - 1)
    return min(1.0, max(0.0, epochs - begun) / (length * factor**number))


DEFAULTS: dict[str, Any] = lr_factor.__kwdefaults__ or {}


def _half_cosine(done: float) -> float:
    """From 1 down to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def check(options: dict[str, Any]) -> list[str]:
    """Notes on the flags that were changed from their defaults and that the --lr_scheduler does not use.

    Raises: UsageError: the schedule lacks a flag that it needs, takes no warm-up, or is a class.
    """
    name = options["lr_scheduler"]
    if options["warmup_steps"] and options["warmup_epochs"]:
        raise UsageError("--warmup_steps and --warmup_epochs are one thing in two units: give one of them")
    if name == "plateau" and (options["warmup_steps"] or options["warmup_epochs"]):
        raise UsageError("--lr_scheduler plateau takes no warm-up")
    if name == "multistep" and not options["lr_milestones"]:
        raise UsageError("--lr_scheduler multistep decays at --lr_milestones, such as 30,60,90 epochs: give them")
    if "." in name and isinstance(_find(name).load(), type):
        what = "is a class: write a function of the share of training done, in 0..1, that returns a factor of lr"
        raise UsageError(f"--lr_scheduler {name} {what}")
    unused = [flag for flag, kinds in _USED_BY.items() if name not in kinds and options[flag] != DEFAULTS[flag]]
    return [f"--{flag} has no effect with --lr_scheduler {name}" for flag in unused]


def needs_length(options: dict[str, Any]) -> bool:
    """Whether a schedule depends on the number of steps of the run or of an epoch."""
    warms_up = options["warmup_steps"] or options["warmup_epochs"]
    return bool(warms_up) or options["lr_scheduler"] not in ("constant", "plateau")


def keep_constant(model: Any, command: str) -> None:
    """Removes a network's schedule, which may need the length of training, for a command that takes a few steps.

    Raises: UsageError: it is no MInterface.
    """
    if not hasattr(model, "schedule"):
        kind = type(model).__name__
        raise UsageError(f"{command} works on MInterface and its subclasses, and {kind} is a LightningModule")
    model.schedule |= {"lr_scheduler": "constant", "warmup_steps": 0, "warmup_epochs": 0.0}


class Schedule(LambdaLR):
    """Sets the rate of each step by `lr_factor`.

    A resumed run may have another end, or, from the end of an epoch on, steps of another size (batch size, devices,
    accumulation): it goes on at the share of training that is done, not at the number of steps.

    epoch: optimizer steps of an epoch; 1 where that is not known, so that a step counts as an epoch.
    max_epochs, max_steps: the ends of the run, infinite where there is none.
    """

    def __init__(
        self, optimizer: Optimizer, epoch: float, max_epochs: float, max_steps: float, options: dict[str, Any]
    ) -> None:
        self.epoch, self.max_epochs, self.max_steps, self.options = epoch, max_epochs, max_steps, options
        self.since = (0, 0.0)  # the step and the epochs done when steps got their present size
        self.warmed = options["warmup_epochs"] or self._epochs(options["warmup_steps"])
        super().__init__(optimizer, self._factor)

    def _epochs(self, step: float) -> float:
        return self.since[1] + (step - self.since[0]) / self.epoch

    def _factor(self, step: int) -> float:
        total = min(self.max_epochs, self._epochs(self.max_steps))
        return lr_factor(step, self._epochs(step), total, self.warmed, self.epoch, **self.options)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and what the share of training done is computed from."""
        return {name: getattr(self, name) for name in ("last_epoch", "epoch", "since", "warmed")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there, and sets the rate, which another end of the run may have changed."""
        epoch, self.last_epoch = self.epoch, state_dict["last_epoch"]
        self.epoch, self.since = state_dict.get("epoch", epoch), tuple(state_dict.get("since", self.since))
        self.warmed = state_dict.get("warmed", self.warmed)
        if self.epoch != epoch:
            self.since, self.epoch = (self.last_epoch, round(self._epochs(self.last_epoch), 9)), epoch
            if self.last_epoch < self.options["warmup_steps"]:
                self.warmed = self._epochs(self.options["warmup_steps"])
        for group, rate in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = rate * self._factor(self.last_epoch)


def build(
    optimizer: Optimizer, epoch: float, max_epochs: int | None, max_steps: int, options: dict[str, Any]
) -> dict[str, Any] | None:
    """Lightning's `lr_scheduler` entry, or None where the rate stays as it is.

    epoch: optimizer steps of an epoch, infinite where they are not known.
    max_epochs, max_steps: the ends of the run, None or -1 for no end.

    Raises: UsageError: the warm-up is longer than the run, or the run has no end to plan for.
    """
    name = options["lr_scheduler"]
    epochs, steps = (math.inf if end in (None, -1) else float(end) for end in (max_epochs, max_steps))
    total = min(steps, epochs * epoch) if epochs else 0.0
    warmup = options["warmup_steps"] + (options["warmup_epochs"] * epoch if options["warmup_epochs"] else 0)
    if warmup >= total:
        given = "steps" if options["warmup_steps"] else "epochs"
        given = f"--warmup_{given} {options[f'warmup_{given}']}"
        raise UsageError(f"{given} should be less than the {total:.0f} steps of the run ({epoch:.0f} an epoch)")
    if name in ("constant", "plateau") and not warmup:
        return None
    over_epochs = name in _OVER_EPOCHS or options["warmup_epochs"] or options["lr_interval"] == "epoch"
    over_run = name in _OVER_RUN or "." in name
    if (math.isinf(total) and over_run) or (math.isinf(epoch) and over_epochs):
        missing = "an end to plan for: give --max_epochs or --max_steps" if over_run else "epochs of known length"
        raise UsageError(f"--lr_scheduler {name} needs {missing}; or take --lr_scheduler constant")
    if math.isinf(epoch):  # a stream's: a step counts as an epoch
        epoch, epochs = 1.0, math.inf
    return {"scheduler": Schedule(optimizer, epoch, epochs, steps, options), "interval": "step"}


class ReduceOnPlateau(Callback):
    """Multiplies the rate by `gamma` at the 4th validation in a row whose `val_loss` is no better than before them.

    A callback, because Lightning steps such a schedule after the epoch's checkpoint is written, and a resumed run
    would miss that step.
    """

    state_key = "Plateau"  # its name in checkpoints of earlier versions

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.state: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.limit_val_batches == 0:
            raise UsageError("--lr_scheduler plateau follows val_loss, and this run has no validation")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if "val_loss" not in trainer.callback_metrics:
            raise UsageError(f"--lr_scheduler plateau follows val_loss, which {type(module).__name__} does not log")
        scheduler = ReduceLROnPlateau(trainer.optimizers[0], factor=self.gamma, patience=3)
        scheduler.load_state_dict(self.state)
        scheduler.step(float(trainer.callback_metrics["val_loss"]))
        self.state = scheduler.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's ReduceLROnPlateau."""
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""
        self.state = state
