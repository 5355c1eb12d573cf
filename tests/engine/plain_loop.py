"""A run whose flags change when it goes on, beside a plain PyTorch loop that changes with it.

A case is drawn from its number: flags, a moment at which the run is cut off, and other flags with which it goes on.
"""

import copy
import math
import random
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import hosts
import main
import torch
import toys
from data import DInterface
from engine.datamodule.resumable_loader import ResumableBatchSampler
from paths import TOYS
from pytorch_lightning import Callback
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

FIRST: dict[str, Any] = {
    "batch_size": 16,
    "devices": 1,
    "accumulate_grad_batches": 1,
    "num_workers": 0,
    "max_epochs": 4,
    "max_steps": -1,
    "patience": None,
    "monitor": "val_loss",
    "precision": "32-true",
    "save_top_k": 1,
    "ema_decay": None,
    "lr_scheduler": "cosine",
    "lr_end": 0.1,
    "warmup_steps": 0,
    "every_n_train_steps": 1,
}
CHOICES: dict[str, list[Any]] = {
    "batch_size": [8, 24, 40],
    "devices": [2],
    "accumulate_grad_batches": [2, 3],
    "num_workers": [1],
    "max_epochs": [2, 3, 5, 6],
    "max_steps": [7, 12, 19],
    "patience": [1, 2, 9],
    "monitor": ["val_acc"],
    "precision": ["bf16-mixed"],
    "save_top_k": [2, 3, -1],
    "ema_decay": [0.5, 0.9],
    "lr_scheduler": ["linear", "one_cycle", "constant"],
    "warmup_steps": [3],
    "every_n_train_steps": [None, 2],
}
FIXED = ("lr_scheduler", "warmup_steps")  # they cannot change
_NUM_ITEMS, _LR = 90, 0.3


class Points(Dataset):
    """Points whose class is hard to tell."""

    num_features, num_classes = 2, 3

    def __init__(self, num_items: int = _NUM_ITEMS) -> None:
        self.points = torch.randn(num_items, 2, generator=torch.Generator().manual_seed(5))
        self.targets = [(index * index + index // 7) % 3 for index in range(num_items)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.points[index], self.targets[index]


class CutOff(Callback):
    """Ends the run before the batch of a number."""

    def __init__(self, before: int) -> None:
        self.before = before

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx >= self.before:
            raise InterruptedError


class PlainLoop:
    """The same training, written down by hand; `flags` may change between two calls of `train`."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.network = toys.Net(2, 3, dropout=0.0)
        self.network.load_state_dict(weights)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=_LR, momentum=0.9)
        data = DInterface(Points, seed=0, test_fraction=0.0)
        self.dataset, self.splits = Points(), {name: data.split(name) for name in ("train", "val")}
        self.step = self.epoch = self.batch = self.bad = 0
        self.epochs, self.average = 0.0, None
        self.best: dict[int, float] = {}  # of the monitored metric, by epoch
        self.least, self.metric, self.stopped, self.done = math.inf, "", False, 0
        self.saved: PlainLoop | None = None
        self.losses: list[tuple[float, int]] = []  # of the epoch, with their items
        self.train_loss = math.nan

    def change(self, flags: dict[str, Any]) -> None:
        """Takes other flags."""
        if flags["monitor"] != self.metric:  # the best is found anew
            self.best, self.bad, self.least, self.metric = {}, 0, math.inf, flags["monitor"]
        if flags["patience"] is None:
            self.bad, self.least = 0, math.inf
        if flags["ema_decay"] is None:
            self.average = None
        elif self.average is None and self.step:  # begins with the weights as they are
            self.average = {name: one.clone() for name, one in self.network.state_dict().items()}
        self.flags = flags
        self._keep()
        self.stopped = flags["patience"] is not None and self.bad >= flags["patience"]

    def _keep(self) -> None:
        sign = -1 if "acc" in self.metric else 1
        order = sorted(self.best, key=lambda epoch: (sign * self.best[epoch], epoch))
        most = self.flags["save_top_k"]
        self.best = {epoch: self.best[epoch] for epoch in (order if most == -1 else order[:most])}

    def train(self, until: float = math.inf) -> None:
        """Trains to the end, or up to a batch, counted over all epochs; `saved` is the state that a run has saved."""
        windows, every = self._windows(), self.flags["every_n_train_steps"]
        self.end = self.flags["max_epochs"]
        if self.flags["max_steps"] >= 0:
            self.end = min(self.end, self.epochs + (self.flags["max_steps"] - self.step) / len(windows))
        while self.epoch < self.flags["max_epochs"] and not self.stopped:
            for window in [one for one in windows if one[0] >= self.batch]:
                if self.is_over() or self.done + len(window) > until:
                    return
                self._step(window, len(windows))
                self.done, self.batch = self.done + len(window), window[-1] + 1
                if window is not windows[-1] and (self.is_over() or (every and self.step % every == 0)):
                    self._save()
            self.epoch, self.batch, self.epochs = self.epoch + 1, 0, self.epoch + 1.0
            self.train_loss = sum(loss * items for loss, items in self.losses) / sum(items for _, items in self.losses)
            self.losses = []
            self._validate()
            self._save()

    def goes_on_with(self, flags: dict[str, Any]) -> bool:
        """Whether the rest of the epoch is the same batches of all ranks with other flags."""
        sizes = {one["batch_size"] * one["devices"] for one in (self.flags, flags)}
        items = {self.sampler(one).batch_bounds[self.batch] for one in (self.flags, flags)} if len(sizes) == 1 else {}
        return len(items) == 1

    def is_over(self) -> bool:
        """Whether `max_steps` are taken."""
        return 0 <= self.flags["max_steps"] <= self.step

    def _save(self) -> None:
        self.saved = None
        self.saved = copy.deepcopy(self)

    def _windows(self) -> list[list[int]]:
        """The numbers of the batches of each step."""
        number, size = len(self.sampler(self.flags)), self.flags["accumulate_grad_batches"]
        return [list(range(first, min(first + size, number))) for first in range(0, number, size)]

    def sampler(self, flags: dict[str, Any], rank: int = 0) -> ResumableBatchSampler:
        """The order of the items of a rank."""
        size, ranks = flags["batch_size"], flags["devices"]
        return ResumableBatchSampler(
            self.splits["train"], size, seed=0, shuffle=True, weights=None, rank=rank, world_size=ranks
        )

    def _batches(self, rank: int) -> list[list[int]]:
        sampler = self.sampler(self.flags, rank)
        sampler.epoch = self.epoch
        return [[self.splits["train"].indices[place] for place in batch] for batch in sampler]

    def _loss(self, items: list[int]) -> tuple[Tensor, Tensor]:
        points, targets = self.dataset.points[items], torch.tensor(self.dataset.targets)[items]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.flags["precision"] == "bf16-mixed"):
            logits = self.network.layers(points)
            return functional.cross_entropy(logits, targets), (logits.argmax(1) == targets).float().mean()

    def _step(self, window: list[int], steps: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = _LR * self._rate(steps)
        self.optimizer.zero_grad()
        ranks = self.flags["devices"]
        for items in [batches[number] for batches in map(self._batches, range(ranks)) for number in window]:
            loss = self._loss(items)[0]
            (loss / len(window) / ranks).backward()
            self.losses.append((loss.item(), len(items)))
        self.optimizer.step()
        self.step += 1
        self.epochs = self.epoch + (window[0] // self.flags["accumulate_grad_batches"] + 1) / steps
        if (decay := self.flags["ema_decay"]) is not None:
            now = {name: one.clone() for name, one in self.network.state_dict().items()}
            old = self.average
            self.average = now if old is None else {key: decay * old[key] + (1 - decay) * now[key] for key in now}

    def _rate(self, steps: int) -> float:
        warmup, name = self.flags["warmup_steps"], self.flags["lr_scheduler"]
        if self.step < warmup:
            return (self.step + 1) / (warmup + 1)
        begun = self.warmed if warmup else 0.0
        done = (self.epochs - begun) / (self.end - begun)
        if name == "constant":
            return 1.0
        if name == "linear":
            return 0.1 + 0.9 * (1 - done)
        if name == "one_cycle":
            if done < 0.3:
                return 0.04 + 0.96 * (0.5 - 0.5 * math.cos(math.pi * done / 0.3))
            return 4e-6 + (1 - 4e-6) * (0.5 + 0.5 * math.cos(math.pi * (done - 0.3) / 0.7))
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))

    @property
    def warmed(self) -> float:
        """The epochs after which the warm-up ended."""
        if not hasattr(self, "_warmed"):
            self._warmed = self.epochs
        return self._warmed

    def _validate(self) -> None:
        trained = {name: one.clone() for name, one in self.network.state_dict().items()}
        if self.average is not None:
            self.network.load_state_dict(self.average)
        with torch.no_grad():
            loss, acc = map(float, self._loss(list(self.splits["val"].indices)))
        self.network.load_state_dict(trained)
        value = acc if "acc" in self.metric else loss
        self.best[self.epoch - 1] = value
        self._keep()
        if self.flags["patience"] is not None:
            signed = -value if "acc" in self.metric else value
            self.bad = 0 if signed < self.least else self.bad + 1
            self.least = min(self.least, signed)
            self.stopped = self.bad >= self.flags["patience"]


def draw(number: int) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """The flags of a case, the batch before which it is cut off, and the flags that change."""
    pick = random.Random(number)
    flags = FIRST | {name: pick.choice(CHOICES[name]) for name in pick.sample([*CHOICES], 3)}
    names = pick.sample([name for name in CHOICES if name not in FIXED or pick.random() < 0.1], 2)
    changed = {
        name: pick.choice([one for one in (FIRST[name], *CHOICES[name]) if one != flags[name]]) for name in names
    }
    return flags, pick.randrange(3, 16), changed


def check(number: int, weights: dict[str, Tensor]) -> str:
    """Runs a case in the working directory: "same" or "refused", or what is wrong. weights: the first ones."""
    return compare(*draw(number), weights)


def compare(flags: dict[str, Any], before: int, changed: dict[str, Any], weights: dict[str, Tensor]) -> str:
    """The same for a case: flags, the batch before which the run is cut off, and the flags that change then."""
    loop = PlainLoop(weights)
    loop.change(flags)
    why = refusal(loop, flags, {})
    status, said = run([*_BASE, *argv(flags)], [CutOff(before)], flags["devices"])
    if why or status == 2:
        return "refused" if why and why in said else f"{flags}: {said}, and not {why}"
    loop.train(until=before)
    if loop.saved is None:
        return "nothing saved"
    loop = loop.saved
    why = refusal(loop, flags | changed, changed)
    status, said = run(["--ckpt_path", "last", *argv(changed)], [], (flags | changed)["devices"])
    case = f"{flags}, cut off before batch {before}, then {changed}"
    if why or status:
        return "refused" if status == 2 and why and why in said else f"{case}: {said}, and not {why}"
    steps = loop.step
    loop.change(flags | changed)
    loop.train()
    last = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    if last["global_step"] != loop.step:
        return f"{case}: {last['global_step']} steps, and not {loop.step}"
    if loop.step == steps:
        return "same"
    found = last.get("current_model_state", last["state_dict"])
    wanted = loop.network.state_dict()
    pairs = [(found, wanted)] if loop.average is None else [(found, wanted), (last["state_dict"], loop.average)]
    for one, other in pairs:
        far = max(float((one[f"network.{name}"] - other[name]).abs().max()) for name in other)
        if far > 1e-4:
            return f"{case}: the weights are {far} from those of the plain loop"
    if abs(last["latest"]["train_loss"] - loop.train_loss) > 1e-4:
        return f"{case}: train_loss {last['latest']['train_loss']}, and not {loop.train_loss}"
    best = last["callbacks"]["BestCheckpoint"]["best_k_models"]
    epochs = {int(Path(path).name.split("-")[1].removeprefix("epoch")) - 1: float(best[path]) for path in best}
    if epochs.keys() != loop.best.keys() or any(abs(epochs[one] - loop.best[one]) > 1e-4 for one in epochs):
        return f"{case}: best {epochs}, and not {loop.best}"
    return "same"


def refusal(loop: PlainLoop, flags: dict[str, Any], changed: dict[str, Any]) -> str:
    """A part of the line by which a run is refused, or ""."""
    for name in FIXED:
        if name in changed:
            return f"--{name} {changed[name]}: the checkpoint was made with"
    epoch = loop.epoch if loop.batch else loop.epoch - 1
    if flags["max_epochs"] <= epoch:
        return f"--max_epochs {flags['max_epochs']}: the checkpoint is of epoch {epoch + 1} already"
    before, loop.flags = loop.flags, flags
    steps = len(loop._windows())
    loop.flags = before
    total = min(steps * flags["max_epochs"], flags["max_steps"] if flags["max_steps"] >= 0 else math.inf)
    if flags["warmup_steps"] >= total:
        return f"--warmup_steps {flags['warmup_steps']} should be less than the {total} steps of the run"
    if not loop.batch or 0 <= flags["max_steps"] <= loop.step:  # nothing is left of it
        return ""
    if not loop.goes_on_with(flags):
        devices = f"{before['devices']} device{'s' * (before['devices'] > 1)}"
        return f"the run stopped within an epoch of --batch_size {before['batch_size']} on {devices}: go on with these"
    if flags["accumulate_grad_batches"] != before["accumulate_grad_batches"]:
        return f"within an epoch of --accumulate_grad_batches {before['accumulate_grad_batches']}"
    return ""


def run(words: list[str], callbacks: list[Callback], devices: int = 1) -> tuple[int, str]:
    """Runs a command line, which may be cut off: its status, and what it printed."""
    if devices > 1:
        return hosts.ranks(devices, lambda: sys.exit(status_of(words, callbacks)))
    with redirect_stdout(StringIO()) as out, redirect_stderr(out):
        status = status_of(words, callbacks)
    return status, out.getvalue()


def status_of(words: list[str], callbacks: list[Callback]) -> int:
    """The exit status of a command line, 0 where it is cut off."""
    try:
        main.main(words, callbacks)
    except InterruptedError:
        return 0
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def first_weights() -> dict[str, Tensor]:
    """Those that every case begins with, from a run that changes nothing."""
    run([*_BASE[:-1], "0", *argv(FIRST | {"max_epochs": 1})], [])
    path = "lightning_logs/version_0/checkpoints/last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("network."): one for name, one in state.items()}


def argv(flags: dict[str, Any]) -> list[str]:
    """The words of a command line."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value).lower())]


_BASE = [*TOYS, "--dataset", "plain_loop.Points", "--dropout", "0", "--optimizer", "SGD", "--momentum", "0.9"]
_BASE += ["--no-pictures", "--logger", "csv", "--test_fraction", "0", "--num_sanity_val_steps", "0", "--lr", str(_LR)]
