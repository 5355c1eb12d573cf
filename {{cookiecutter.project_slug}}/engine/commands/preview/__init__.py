"""`preview`: look at the data before training: first batches, classes, broken items, leaks, learning rates, speed."""

import copy
import html
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pytorch_lightning import Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from engine.checkpointing.atomic_write import atomic_file, write_atomically
from engine.cli.settings import Settings
from engine.commands.preview import pictures, split_statistics
from engine.commands.preview.findings import Finding, problems, table
from engine.commands.preview.pictures import FirstBatch
from engine.commands.preview.split_statistics import SplitStatistics
from engine.datamodule.item_fields import ItemFields
from engine.datamodule.resumable_loader import ResumableLoader
from engine.errors import UsageError, printable
from engine.logging import figures, html_page
from engine.training import optimizers, trainer_setup
from engine.training.step_timer import StepTimer

_SHOWN = 10  # lines of a finding that are printed; the page has all
_POINTS = 1000  # of the learning rate, about
_NUM_STEPS, _LOADING_SECONDS = 12, 1.0  # for which network and loading are timed
_WORKERS = (0, 1, 2, 4)
# Flags of the Trainer by which the number of steps is planned.
_LENGTH = "accumulate_grad_batches max_steps max_time limit_train_batches overfit_batches".split()


class NoNetwork(nn.Module):
    """Stands for the network where --model_name is not given; nothing calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Takes any input."""
        return self.weight


def run(
    settings: Settings,
    build_data: Callable[..., Any],
    build_model: Callable[..., Any],
    *,
    preview_dir: str = "preview",
    check_all: bool = False,
    check_seconds: Annotated[float, "> 0"] = 5.0,
) -> None:
    """Prints what the splits hold and what may be wrong with them, and draws what the network gets; trains nothing.

    Items that cannot be read are all named, with exit status 1; so are items of the same bytes that are in two splits
    or have two targets. Without --model_name no step is timed; learning rates and speeds are those of one device.

    preview_dir: folder for the page and its pictures.
    check_all: read every item, also of a stream, however long that takes. The same item is found by its bytes; a
        picture that was saved once more in another size is not.
    check_seconds: seconds to spend on reading items of each split in random order, of a stream the first 1,000 at most;
        the table says how many were read.

    Raises: UsageError: preview_dir cannot be written.
    """
    if settings.arguments["trainer"].get("fast_dev_run"):
        raise UsageError("preview takes no --fast_dev_run: it trains nothing")
    folder = Path(preview_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--preview_dir {folder}: {error.strerror}") from None
    seed_everything(settings.arguments["run"]["seed"], verbose=False)
    data = build_data(settings)
    more = [name for stage in ("val", "test") for name in data.set_names(stage) if name != stage]
    with _streams_put_back(data):
        found = [split_statistics.read(data, one, check_seconds, check_all) for one in ("train", "val", "test", *more)]
    splits = [split for split in found if split is not None]
    findings, lines = problems(data, splits), table(data, splits)
    print(*lines, sep="\n", flush=True)
    damaged = any(one.no_batch for one in findings)
    draws, tried, steps = dict[str, FirstBatch](), list[str](), None
    try:
        with _streams_put_back(data):
            for split in (one for one in splits if one.name in ("train", "val")):
                draws[split.name] = pictures.first_batch(data, split.name, split.drawn)
        with warnings.catch_warnings():
            # More workers than cores, as is asked here.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            steps, tried = _try_network(settings, data, build_model)
    except Exception as error:
        if not damaged:
            raise  # the user's own
        tried = [f"no step is tried: {printable(str(error).partition(chr(10))[0])}"]
    if steps and steps.transform:
        draws["train"] = draws["train"]._replace(batches=[*map(steps.transform, draws["train"].batches)])
    print(*tried, *_texts(findings, _SHOWN), sep="\n", flush=True)
    _write(folder, data, splits, [*lines, *tried, *_texts(findings, None)], draws, steps)
    print(folder / "preview.html")
    if any(split.broken for split in splits):
        raise SystemExit(1)


@contextmanager
def _streams_put_back(data: Any) -> Iterator[None]:
    """On leaving, streams that keep their place (`state_dict`) are set back to where they were on entering."""
    splits = [data.split(name) for name in ("train", *data.set_names("val"), *data.set_names("test"))]
    streams = [one for one in splits if isinstance(one, IterableDataset) and hasattr(one, "state_dict")]
    states = [copy.deepcopy(one.state_dict()) for one in streams]
    try:
        yield
    finally:
        for stream, state in zip(streams, states, strict=True):
            stream.load_state_dict(state)  # type: ignore[attr-defined]


def _texts(findings: list[Finding], most: int | None) -> list[str]:
    """A line for each finding, and its details below it."""
    lines = ["", "what may be wrong:" if findings else "nothing stands out in the items read"]
    for finding in findings:
        lines.append(f"- {printable(finding.sentence)}")
        lines += [f"    {printable(one)}" for one in finding.details[:most]]
        if most and (more := len(finding.details) - most) > 0:
            lines.append(f"    and {more} more: see the page")
    return lines


class _StepProbe(StepTimer):
    """Takes the learning rates of the whole run, and times some steps.

    steps, rates: some of the planned steps, and the rates there by name; empty where the run has no end, or schedules
    of its own. transform: of training batches, where a feature sets one.
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps, self.total = num_steps, math.inf
        self.steps: list[int] = []
        self.rates: dict[str, list[float]] = {}
        self.transform: Callable[..., Any] | None = None

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.transform = getattr(module, "batch_transform", None)
        self.total = float(trainer.estimated_stepping_batches)
        schedules: list[Any] = [config.scheduler for config in trainer.lr_scheduler_configs]
        known = len(trainer.optimizers) == 1 and all(hasattr(one, "lr_lambdas") for one in schedules)
        if known and 1 <= self.total < math.inf:
            last = int(self.total) - 1
            self.steps = sorted({*range(0, last, 1 + last // _POINTS), last})
            self._plan(trainer.optimizers[0], schedules)
        trainer.should_stop = not self.num_steps

    def _plan(self, optimizer: Any, schedules: list[Any]) -> None:
        first = [group["lr"] for group in optimizer.param_groups]
        for step in self.steps:
            for schedule in schedules:
                rates = zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
                for group, rate, factor in rates:
                    group["lr"] = rate * factor(step)
            for name, rate in optimizers.current_lrs(optimizer).items():
                self.rates.setdefault(name, []).append(rate)
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # type: ignore[override]
        super().on_train_batch_end(trainer, *args)
        trainer.should_stop = len(self.ends) >= self.num_steps


def _try_network(settings: Settings, data: Any, build_model: Callable[..., Any]) -> tuple[_StepProbe, list[str]]:
    """The planned learning rates; with a network, the time of its steps and of loading too; and what to say of them."""
    is_named = settings.network.load() is not NoNetwork
    speeds, chosen = dict[int, float](), data.num_workers
    for workers in _WORKERS if is_named else ():
        data.num_workers = workers
        loader = data.train_dataloader()
        if not isinstance(loader, ResumableLoader) or loader.loader.num_workers in speeds:
            break  # a LightningDataModule sets them itself
        with _streams_put_back(data):
            speeds[loader.loader.num_workers] = _loading_speed(loader, data.item_fields)
        if loader.iterable:
            break
    data.num_workers = chosen
    model = build_model(settings, data)
    steps = _StepProbe(_NUM_STEPS if is_named else 0)
    length = {key: value for key, value in settings.arguments["trainer"].items() if key in _LENGTH}
    length["max_epochs"] = settings.arguments["run"]["max_epochs"]
    trainer = trainer_setup.make_trial_trainer(settings, model, data, steps, **length)
    trainer.fit(model, data)
    lines = [""]
    for name, rates in steps.rates.items():
        said = f"starts at {rates[0]:.3g}, peaks at {max(rates):.3g}, ends at {rates[-1]:.3g}"
        lines.append(f"{name}: {said}, over {steps.total:,.0f} steps")
    if seconds := steps.seconds_without_loading():
        speed = statistics.median(steps.num_items[2:]) / statistics.median(seconds)
        lines.append(f"{settings.network.name} on {trainer.strategy.root_device.type}: {speed:,.0f} items/s")
        said = ", ".join(f"{speed:,.0f} with {workers}" for workers, speed in speeds.items())
        lines += [f"loading, items/s by --num_workers: {said}", _limit(speeds, speed)] if speeds else []
    return steps, lines


def _loading_speed(loader: ResumableLoader, fields: ItemFields) -> float:
    """Items a second, once the workers are at it."""
    start, begun, count = time.perf_counter(), 0.0, 0
    for number, batch in enumerate(itertools.chain.from_iterable(itertools.repeat(loader))):
        now = time.perf_counter()
        count += fields.split(batch).num_items() if begun else 0
        if begun and now - begun > _LOADING_SECONDS:
            break
        if not begun and (number > 2 * loader.loader.num_workers or now - start > 5 * _LOADING_SECONDS):
            begun = now  # what the workers loaded ahead is used up
    loader.close()
    return count / (now - begun)


def _limit(loading: dict[int, float], network: float) -> str:
    """Which of the two a run waits for. Without workers they take turns."""
    if loading.get(0, 0.0) >= 10 * network:
        return "the network limits: loading takes less than a tenth of the time with --num_workers 0"
    if enough := [workers for workers, speed in loading.items() if workers and speed >= network]:
        return f"the network limits: loading keeps up with --num_workers {enough[0]}"
    best = max(loading, key=lambda workers: loading[workers])
    return f"loading limits: it is quickest with --num_workers {best}, and the network waits for it"


def _write(
    folder: Path,
    data: Any,
    splits: list[SplitStatistics],
    lines: list[str],
    draws: dict[str, FirstBatch],
    steps: _StepProbe | None,
) -> None:
    """Writes the pictures, learning_rate.csv and the page."""
    parts = [f"<pre>{html.escape(chr(10).join(map(printable, lines)))}</pre>"]
    drawings: dict[str, Callable[[], Any]] = {}
    for split in splits:
        if (found := draws.get(split.name)) and found.batches:
            drawings |= pictures.draw_batch(data, split, found)
            if shown := pictures.table(data, found):
                parts.append(f"<h2>first items of the {split.name} split</h2>{pictures.html_table(shown)}")
    numbers = {split.name: torch.tensor(split.numbers) for split in splits if split.numbers}
    if numbers := {name: data.in_unit(one[one.isfinite()]).numpy() for name, one in numbers.items()}:
        drawings["targets"] = partial(pictures.chart, numbers, "target", "density")
    if steps and steps.steps:
        drawings["learning_rate"] = partial(pictures.chart, steps.rates, "step", "learning rate", steps.steps)
        rows = [["step", *steps.rates], *zip(steps.steps, *steps.rates.values(), strict=True)]
        write_atomically(folder / "learning_rate.csv", "".join(f"{','.join(map(str, row))}\n" for row in rows))
    for name, draw in drawings.items():
        figures.write_png(path := folder / f"{name}.png", figures.render(draw))
        parts.append(html_page.picture(path))
    with atomic_file(folder / "preview.html") as part:
        part.write_bytes(html_page.page("preview", parts))
