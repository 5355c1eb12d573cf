"""`predict`: what a checkpoint says of the test part, of a folder of images, or of a file, as predictions.csv.

Each process writes what it sees to files of its own; when all are done the first one puts them together. So memory
holds one batch, whatever the length. All processes must see the same run folder.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Subset

from engine.discovery import UsageError
from engine.inputs import Images, named
from engine.loader import seat


def run(
    trainer: Trainer,
    model: LightningModule,
    data: Any,
    ckpt_path: str,
    folder: Path,
    *,
    format: Literal["csv", "npy", "pt"] = "csv",
    images: str | None = None,
    rows: str | None = None,
) -> None:
    """Writes a row for each item: its number, its path or id where the dataset has such, class and probabilities.

    What is no classification gives its output values, or the texts that the dataset's `decode` makes of whole numbers.
    With npy and pt: the probabilities or output values alone, as an
    array (items, ...) of float32, and beside it the paths or ids, one a line.

    Args:
        format: of the file: a table, or an array of numpy or torch, which may hold images too.
        images: predict each image file below this folder instead of the test part.
        rows: predict each row of this file instead of the test part, with a target or without.

    Raises:
        UsageError: the outputs do not fit into a table; the dataset cannot open images or rows, or none is there.
        TypeError: the network's output is no tensor.
    """
    data.predicts = named(data, images, rows)
    trainer.callbacks.append(_Written(folder, format, data))  # type: ignore[attr-defined]
    trainer.predict(model, data, ckpt_path=ckpt_path, return_predictions=False, weights_only=True)


class _Written(Callback):
    def __init__(self, folder: Path, format: str, data: Any) -> None:
        self.folder, self.format, self.data, self.rows = folder, format, data, 0
        self.shape: tuple[int, ...] = ()
        self.whole = False  # the outputs are whole numbers

    def _part(self, rank: int, what: str) -> Path:
        return self.folder / f"predictions.{what}.{rank}.part"

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))  # where the first process has claimed one
        self.files = [self._part(trainer.global_rank, what).open("wb") for what in ("values", "numbers")]

    def on_predict_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        values = _probabilities(outputs, module)  # (B, ...)
        self.whole, values = not values.is_floating_point(), values.float().cpu()
        if self.format == "csv" and values.dim() > 2:
            raise UsageError(f"an output of shape {tuple(values.shape[1:])} fits no table: --format npy or pt")
        self.shape = tuple(values.shape[1:])
        loader: Any = trainer.predict_dataloaders
        if loader.iterable:  # the ranks of a stream take turns
            numbers = seat(trainer).rank + seat(trainer).size * np.arange(self.rows, self.rows + len(values))
        else:
            numbers = loader.numbers(batch_idx).numpy()
        self.rows += len(values)
        keep = np.full(len(values), True) if loader.iterable else numbers < len(loader.data)  # the rest fills up
        if trainer.global_rank % (trainer.world_size // seat(trainer).size):
            keep[:] = False  # of processes that see the same, the first writes
        if isinstance(getattr(loader, "data", None), Images):
            numbers = np.where(batch[-1].cpu().numpy(), numbers, -1 - numbers)  # below 0: could not be read
        self.files[0].write(values.numpy()[keep].tobytes())
        self.files[1].write(numbers[keep].astype(np.int64).tobytes())

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        for file in getattr(self, "files", []):
            file.close()
            Path(file.name).unlink(missing_ok=True)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        for file in self.files:
            file.close()
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            loader: Any = trainer.predict_dataloaders
            self._merge(trainer.world_size, _ids(loader.data), getattr(module, "classifies", False))

    def _merge(self, ranks: int, ids: list[str] | None, classes: bool) -> None:
        parts = [np.fromfile(self._part(rank, "numbers"), np.int64) for rank in range(ranks)]
        starts = np.cumsum([0, *map(len, parts)])
        numbers = np.concatenate(parts)
        order = np.argsort(numbers, kind="stable")
        skipped = [-1 - int(number) for number in numbers[order[::-1]] if number < 0]
        order = order[len(skipped) :]
        shapes = [(len(part), *self.shape) for part in parts]
        values = [  # an empty file cannot be mapped
            np.memmap(self._part(rank, "values"), np.float32, "r", shape=shape) if shape[0] else None
            for rank, shape in enumerate(shapes)
        ]

        def rows() -> Iterator[tuple[int, Any]]:
            for place in order:
                rank = int(np.searchsorted(starts, place, side="right")) - 1
                yield int(numbers[place]), values[rank][place - starts[rank]]  # type: ignore[index]

        path = self.folder / f"predictions.{self.format}"
        if self.format == "csv":
            names = self.data.knows("classes") if classes else None
            decode = self.data.knows("decode") if self.whole else None
            _write_table(path, rows(), ids, int(np.prod(self.shape)), classes, names, decode)
        else:
            _write_array(path, rows(), (len(order), *self.shape))
            if ids is not None:
                path.with_suffix(".txt").write_text(
                    "".join(f"{ids[number]}\n" for number in numbers[order]), encoding="utf-8"
                )
        for rank in range(ranks):
            for what in ("values", "numbers"):
                self._part(rank, what).unlink()
        for number in skipped:
            print(f"cannot be read: {ids[number] if ids else number}", file=sys.stderr)
        print(f"{path}: {len(order)} rows" + (f"; {len(skipped)} that cannot be read left out" if skipped else ""))


def _probabilities(outputs: Any, module: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise TypeError(f"predict writes tensors, and {type(module).__name__} gives a {type(outputs).__name__}")
    outputs = outputs.detach().reshape(len(outputs), -1) if outputs.dim() < 2 else outputs.detach()
    if getattr(module, "classifies", False):
        return outputs.float().softmax(1)
    return outputs.float().sigmoid() if getattr(module, "answers_yes_or_no", False) else outputs


def _ids(part: Any) -> list[str] | None:
    """What the dataset calls each item: its `ids`, `paths`, `samples` or `imgs`, the latter two with the class."""
    where: Any = None
    while isinstance(part, Subset):
        where, part = part.indices if where is None else [part.indices[index] for index in where], part.dataset
    for name in ("ids", "paths", "samples", "imgs"):
        found = getattr(part, name, None)
        if found is not None and hasattr(part, "__len__") and len(found) == len(part):
            said = [str(one[0] if isinstance(one, (tuple, list)) else one) for one in found]
            return said if where is None else [said[index] for index in where]
    return None


def _write_table(
    path: Path, rows: Iterator[Any], ids: list[str] | None, width: int, classes: bool, names: Any, decode: Any
) -> None:
    part = path.with_suffix(".csv.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["index", *(["id"] if ids else []), *(["class"] if classes else []), *(["name"] if names else [])]
        values_head = ["text"] if decode else [f"{'p' if classes else 'y'}{number}" for number in range(width)]
        writer.writerow([*head, *values_head])
        for number, values in rows:
            row = [number, *([ids[number]] if ids else [])]
            if classes:
                best = int(values.argmax())
                row += [best, *([names[best]] if names else [])]
            said = [decode(values.astype(int).tolist())] if decode else [f"{value:.6g}" for value in values.tolist()]
            writer.writerow([*row, *said])
    part.replace(path)


def _write_array(path: Path, rows: Iterator[Any], shape: tuple[int, ...]) -> None:
    part = path.with_suffix(".npy.part")
    array = np.lib.format.open_memmap(part, "w+", np.float32, shape)
    for at, (_, values) in enumerate(rows):
        array[at] = values
    array.flush()
    if path.suffix == ".npy":
        part.replace(path)
        return
    torch.save(torch.from_numpy(array), path.with_suffix(".pt.part"))  # from the mapped file, not through memory
    path.with_suffix(".pt.part").replace(path)
    part.unlink()
