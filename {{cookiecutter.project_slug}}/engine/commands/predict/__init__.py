"""`predict`: what a checkpoint says of the test part, of a folder of images, or of a file, as predictions.csv.

Each process writes what it sees to files of its own; when all are done the first one puts them together. So memory
holds one batch, whatever the length. All processes must see the same run folder.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from engine.commands.predict.prediction_inputs import Images, named
from engine.commands.predict.prediction_writers import Pictures, array, table
from engine.datamodule.seeding import resolve_subset
from engine.errors import UsageError
from engine.launch.data_parallel import data_parallel_rank


def run(
    trainer: Trainer,
    model: LightningModule,
    data: Any,
    ckpt_path: str,
    run_dir: Path,
    *,
    format: Literal["csv", "npy", "pt", "png"] = "csv",
    images: str | None = None,
    rows: str | None = None,
) -> None:
    """Writes a row for each item: its number, its path or id where the dataset has such, class and probabilities.

    What is no classification gives its output values, as the dataset's `inverse_transform` makes them where it has one,
    or the texts that its `decode` makes of whole numbers.
    With npy and pt: the probabilities or output values alone, as an array (items, ...) of float32, and beside it the
    paths or ids, one a line. With png: the images that come out, or masks of the classes of their pixels, in
    predictions/.

    Args:
        format: of the file: a table, or an array of numpy or torch, which may hold images too; png for a file an image.
        images: predict each image file below this folder, or this one file, instead of the test part.
        rows: predict each row of this file instead of the test part, with a target or without.

    Raises:
        UsageError: the outputs do not fit into a table, an array, or pictures; the dataset cannot open images or rows,
            or none is there.
        TypeError: the network's output is no tensor.
    """
    data.predict_dataset = named(data, images, rows)
    trainer.callbacks.append(_Written(run_dir, format, data))  # type: ignore[attr-defined]
    trainer.predict(model, data, ckpt_path=ckpt_path, return_predictions=False, weights_only=True)


class _Written(Callback):
    def __init__(self, folder: Path, format: str, data: Any) -> None:
        self.folder, self.format, self.data, self.rows = folder, format, data, 0
        self.shape: tuple[int, ...] = ()
        self.whole = False  # the outputs are whole numbers
        self.pictures: Pictures | None = None

    def _part(self, rank: int, what: str) -> Path:
        return self.folder / f"predictions.{what}.{rank}.part"

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))  # where the first process has claimed one
        self.files = [self._part(trainer.global_rank, what).open("wb") for what in ("values", "numbers")]

    def on_predict_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        values = _probabilities(outputs, module)  # (B, ...)
        if not _classifies(module) and (undo := self.data.attribute("inverse_transform")) is not None:
            values = undo(values)
        self.whole, values = not values.is_floating_point(), values.float().cpu()
        if self.format == "csv" and values.dim() > 2:
            raise UsageError(f"an output of shape {tuple(values.shape[1:])} fits no table: --format png, npy or pt")
        if self.format != "png" and self.shape not in ((), tuple(values.shape[1:])):
            raise UsageError(f"outputs of shapes {self.shape} and {tuple(values.shape[1:])} fit no array: --format png")
        self.shape = tuple(values.shape[1:])
        loader: Any = trainer.predict_dataloaders
        if loader.iterable:  # the ranks of a stream take turns
            here = data_parallel_rank(trainer)
            numbers = here.rank + here.size * np.arange(self.rows, self.rows + len(values))
        else:
            numbers = loader.epoch_sampler.positions(batch_idx).numpy()
        self.rows += len(values)
        keep = np.full(len(values), True) if loader.iterable else numbers < len(loader.data)  # the rest fills up
        if trainer.global_rank % (trainer.world_size // data_parallel_rank(trainer).size):
            keep[:] = False  # of processes that see the same, the first writes
        if isinstance(getattr(loader, "data", None), Images):
            numbers = np.where(batch[-1].cpu().numpy(), numbers, -1 - numbers)  # below 0: could not be read
        if self.format == "png":
            self.pictures = self.pictures or Pictures(self.folder / "predictions", self.data, _ids(loader.data))
            read = keep & (numbers >= 0)
            self.pictures.write(numbers[read].tolist(), values[torch.from_numpy(read)], _classifies(module))
        else:
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
            self._merge(trainer.world_size, _ids(loader.data), _classifies(module), loader.data)

    def _merge(self, ranks: int, ids: list[str] | None, classes: bool, part: Any) -> None:
        parts = [np.fromfile(self._part(rank, "numbers"), np.int64) for rank in range(ranks)]
        starts = np.cumsum([0, *map(len, parts)])
        numbers = np.concatenate(parts)
        order = np.argsort(numbers, kind="stable")
        skipped = [-1 - int(number) for number in numbers[order[::-1]] if number < 0]
        order = order[len(skipped) :]
        shapes = [(len(part), *self.shape) for part in parts]
        paths = [self._part(rank, "values") for rank in range(ranks)]
        values = [  # an empty file cannot be mapped
            np.memmap(path, np.float32, "r", shape=shape) if path.stat().st_size else None
            for path, shape in zip(paths, shapes, strict=True)
        ]

        def rows() -> Iterator[tuple[int, Any]]:
            for place in order:
                rank = int(np.searchsorted(starts, place, side="right")) - 1
                yield int(numbers[place]), values[rank][place - starts[rank]]  # type: ignore[index]

        path = self.folder / f"predictions.{self.format}"
        if self.format == "png":  # each is written already
            path = self.folder / "predictions"
        elif self.format == "csv":
            names = self.data.attribute("classes") if classes else None
            decode = self.data.attribute("decode") if self.whole else None
            table(path, rows(), ids, int(np.prod(self.shape)), classes, names, decode)
        else:
            array(path, rows(), (len(order), *self.shape))
            if ids is not None:
                path.with_suffix(".txt").write_text(
                    "".join(f"{ids[number]}\n" for number in numbers[order]), encoding="utf-8"
                )
        for rank in range(ranks):
            for what in ("values", "numbers"):
                self._part(rank, what).unlink()
        for number in skipped:
            print(f"left out: {part.why(number)}", file=sys.stderr)
        many = f"{len(order)} {'files' if self.format == 'png' else 'rows'}"
        print(f"{path}: {many}" + (f"; {len(skipped)} that cannot be read left out" if skipped else ""))


def _probabilities(outputs: Any, module: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise TypeError(f"predict writes tensors, and {type(module).__name__} gives a {type(outputs).__name__}")
    outputs = outputs.detach().reshape(len(outputs), -1) if outputs.dim() < 2 else outputs.detach()
    if _classifies(module):
        return outputs.float().softmax(1)
    return outputs.float().sigmoid() if getattr(module, "has_binary_logits", False) else outputs


def _classifies(module: Any) -> bool:
    return bool(getattr(module, "is_multiclass", False))


def _ids(part: Any) -> list[str] | None:
    """What the dataset calls each item: its `ids`, `paths`, `samples` or `imgs`, the latter two with the class."""
    if not hasattr(part, "__len__"):
        return None
    data, which = resolve_subset(part, list(range(len(part))))
    for name in ("ids", "paths", "samples", "imgs"):
        found = getattr(data, name, None)
        if found is not None and len(found) == len(data):
            said = (found[index] for index in which)
            return [str(one[0] if isinstance(one, (tuple, list)) else one) for one in said]
    return None
