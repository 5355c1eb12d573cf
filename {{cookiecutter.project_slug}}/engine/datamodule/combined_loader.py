"""CombinedResumableLoader: a batch of each of several loaders a step, in an order that a resumed run repeats."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection

from engine.datamodule.resumable_loader import ResumableLoader
from engine.errors import UsageError


class CombinedResumableLoader:
    """Does what Lightning's CombinedLoader does, and goes on within an epoch.

    loaders: ResumableLoaders of map-style datasets in lists, tuples or dicts; a batch has the same form.
    mode: max_size_cycle: a shorter one begins again, each time in a new order; max_size: it gives None from its end on;
        min_size: the shortest one ends the epoch.
    current_epoch: called when an epoch starts, for its number. flattened: the loaders in a list.

    Raises: UsageError: another mode, or a loader without batches.
    """

    def __init__(self, loaders: Any, mode: str, current_epoch: Callable[[], int]) -> None:
        if mode not in ("max_size_cycle", "max_size", "min_size"):
            raise UsageError(f"CombinedLoader(mode={mode!r}) is not for training: max_size_cycle, max_size or min_size")
        self.loaders, self.mode, self.current_epoch = loaders, mode, current_epoch
        self.flattened: list[ResumableLoader] = []
        apply_to_collection(loaders, ResumableLoader, self.flattened.append)
        if not all(map(len, self.flattened)):
            why = "its dataset is empty, or smaller than a batch (drop_last)"
            raise UsageError(f"a training loader has no batch: {why}")
        self._resume_from: dict[str, Any] = {}

    def __len__(self) -> int:
        return (min if self.mode == "min_size" else max)(map(len, self.flattened))

    def __iter__(self) -> Iterator[Any]:
        epoch, start = self._start()
        self._resume_from = {}
        batches = {id(loader): self._batches(loader, epoch, start) for loader in self.flattened}
        for _ in range(start, len(self)):
            yield apply_to_collection(self.loaders, ResumableLoader, lambda loader: next(batches[id(loader)]))

    def _batches(self, loader: ResumableLoader, epoch: int, start: int) -> Iterator[Any]:
        """A loader's batches from a step of an epoch on, without end."""
        if self.mode != "max_size_cycle":
            yield from loader.batches(epoch, min(start, len(loader)))
            while True:
                yield None
        number = epoch * math.ceil(len(self) / len(loader)) + start // len(loader)  # of its pass over its items
        yield from loader.batches(number, start % len(loader))
        while True:
            number += 1
            yield from loader.batches(number, 0)

    def check_resume(self) -> None:
        """Raises UsageError where the run stopped within an epoch that these loaders do not go on with."""
        self._start()

    def _start(self) -> tuple[int, int]:
        """The epoch that begins, and its first step."""
        epoch, resume = self.current_epoch(), self._resume_from
        start = resume["steps"] if resume.get("epoch") == epoch else 0
        if start and start < resume["of"] and resume["cut"] != self._cut():
            raise UsageError("the run stopped within an epoch of loaders with other batches, on as many devices as "
                             f"{resume['cut'][0][1]}: go on with these until the epoch's end")  # fmt: skip
        return epoch, start

    def _cut(self) -> list[Any]:
        """What the batches of a step depend on: of each loader its length, the devices and the items of a batch."""
        loaders = [[len(one), one.world_size, one.global_batch_size] for one in self.flattened]
        return [*loaders, self.mode, self.flattened[0].accumulate]

    def state_after(self, steps: int) -> dict[str, Any]:
        """The state after that many steps of the epoch, for `load_state_dict`."""
        return {"epoch": self.current_epoch(), "steps": steps, "of": len(self), "cut": self._cut()}

    def state_dict(self) -> dict[str, Any]:
        """Does nothing, as ResumableLoader's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from `state` when the epoch that it is of begins."""
        self._resume_from = state or self._resume_from
