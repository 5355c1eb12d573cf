"""`predict`: write predictions.csv for the test split, for files, or for the rows of files.

Each process writes what it predicts to a file of its own; when all are done the first one merges them. So memory holds
one batch, whatever the length. All processes must see the same run folder.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from engine.checkpointing.atomic_write import write_atomically, write_errors
from engine.commands.predict.explain import Explanations
from engine.commands.predict.layer_output import MAX_POINTS, LayerOutput, draw_components
from engine.commands.predict.prediction_files import ImageWriter, is_picture, write_array, write_table
from engine.commands.predict.prediction_inputs import Files, prediction_dataset
from engine.datamodule.item_fields import ItemFields
from engine.datamodule.splits import item_ids
from engine.errors import UsageError, nearest, printable
from engine.launch.data_parallel_rank import data_parallel_rank
from engine.training.output_spec import OutputSpec, main_output


def run(
    trainer: Trainer,
    model: LightningModule,
    data: Any,
    ckpt_path: str | None,
    run_dir: Path,
    *,
    format: Literal["csv", "npy", "pt", "png"] | None = None,
    images: str | None = None,
    rows: str | None = None,
    files: str | None = None,
    head_name: str | None = None,
    layer: str | None = None,
    explain: Literal["integrated_gradients", "saliency", "input_x_gradient", "grad_cam"] | None = None,
) -> None:
    """Writes a row for each item: number, path or id where the dataset has such, true target, class and probabilities.

    Other tasks than classification write the output values, after the dataset's `inverse_transform` if it has one, or
    the texts that its `decode` makes of whole numbers.
    With npy and pt: the probabilities or output values alone, as an array (items, ...) of float32, of whole numbers of
    int64, and beside it the paths or ids, one a line. With png: the images that come out, or masks of the classes of
    their pixels, in predictions/. Of images, rows and files the file is called like the folder or file that they come
    from: predictions_NAME.csv.

    format: csv for a table, npy or pt for an array, of images too, png for one file per image. None is csv, or npy with
        layer.
    images: predict each image file below this folder, or this one file, instead of the test split.
    rows: predict each row of this file, or of the files below this folder, instead of the test split, with a target or
        without, as the dataset's `open_rows` reads it.
    files: predict each file below this folder, or this one file, instead of the test split, as the dataset's
        `open_file` reads it; one that raises a ValueError or OSError is left out.
    head_name: which output to write, where the network or a predict_step returns a dict, or by its number of a tuple.
    layer: write the output of this layer (features.3) instead, with a picture of its first two principal components;
        with explain grad_cam, the layer for Grad-CAM.
    explain: also draw which pixels support a class, for the 12 worst mistakes of the test split, or for --images.

    Raises:
        UsageError: the outputs do not fit into a table, an array, or pictures; the dataset cannot open images, rows or
            files, or none is there.
    """
    if not (hasattr(model, "unpack_batch") or is_overridden("predict_step", model)):
        name = type(model).__name__
        raise UsageError(f"predict calls {name}.predict_step, which it does not have: one may return self(batch[0])")
    data.predict_dataset = prediction_dataset(data, images, rows, files)
    source = Path(given := images or rows or files or "").resolve()
    name = f"predictions_{source.name if source.is_dir() else source.stem}" if given else "predictions"
    if layer and explain not in (None, "grad_cam"):
        raise UsageError("--layer goes with --explain grad_cam only: run predict once for each")
    output = LayerOutput(layer) if layer and not explain else None
    if output:
        name = f"layer_{layer}{name.removeprefix('predictions')}"
    writer = PredictionWriter(run_dir, format or ("npy" if output else "csv"), data, name, head_name, output)
    trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    if explain:
        trainer.callbacks.append(Explanations(run_dir, explain, data, layer))  # type: ignore[attr-defined]
    trainer.predict(model, data, ckpt_path=ckpt_path, return_predictions=False, weights_only=True)


class PredictionWriter(Callback):
    """Writes the predictions of each rank, and at the end one file in the order of the items."""

    def __init__(
        self, folder: Path, format: str, data: Any, name: str, head: str | None, layer: LayerOutput | None
    ) -> None:
        self.folder, self.format, self.data, self.name, self.head = folder, format, data, name, head
        self.layer = layer
        self.num_items = 0
        self.integer = False
        self.record = np.dtype([])
        self.images: ImageWriter | None = None

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Only the first process has made a folder; its number keeps apart two commands at work on one run.
        folder, self.process = trainer.strategy.broadcast((str(self.folder), os.getpid()))
        self.folder = Path(folder)
        # What the output means; of a module that does not say, nothing.
        self.output_spec: OutputSpec = getattr(module, "predicts", OutputSpec("other"))
        if (heads := getattr(module, "heads", {})) and not self.layer:
            if self.head not in heads:
                raise UsageError(f"the network returns several outputs: --head_name, one of {', '.join(heads)}")
            self.output_spec = heads[self.head].spec
        self.true_is_class = self.output_spec.task == "multiclass"
        if self.layer:
            self.layer.attach(module)  # not before: configure_model and setup may build layers
            self.output_spec = OutputSpec("other")
        self.classifies = self.output_spec.task == "multiclass"
        self.file = self._rank_file(trainer.global_rank).open("wb")

    def on_predict_batch_start(self, *_: Any) -> None:
        if self.layer:
            self.layer.kept.clear()  # what a hook of the module ran between the batches, such as over a whole catalogue

    def on_predict_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        outputs = self.layer.take() if self.layer else outputs
        head = self.head if not self.layer or _by_name(outputs) else None
        if head and not getattr(module, "heads", {}) and _by_name(outputs).get(head) is not main_output(outputs):
            self.output_spec, self.classifies = OutputSpec("other"), False  # it is not what the loss compares
        if isinstance(outputs, tuple) and not (head or self.num_items) and trainer.is_global_zero:
            named = [name for name, one in _by_name(outputs).items() if isinstance(one, Tensor) and one.dim()]
            if named[1:]:
                print(f"of the outputs {', '.join(named)} this is the first: --head_name writes another one")
        values = _main_tensor(outputs, head)  # (B, ...)
        if self.classifies and not self.num_items and hasattr(module, "guess_answer"):
            if (guess := module.guess_answer(values, batch)) and trainer.is_global_zero:
                print(guess)
            self.classifies = self.output_spec.task == "multiclass"
        values = self.output_spec.probabilities(values)
        if values.is_complex():
            raise UsageError("predict writes real numbers, and the network gives complex ones: torch.view_as_real")
        if not (self.classifies or self.layer):
            values = self.data.in_unit(values)
        self.integer = not values.is_floating_point()
        values = values.detach().to("cpu", torch.int64 if self.integer else torch.float32)
        numbers, keep = self._item_numbers(trainer, batch_idx, len(values))
        if len(numbers) != len(values):
            what = f"--layer {self.layer.name}" if self.layer else "the network"
            raise UsageError(f"{what} gives {len(values)} rows for a batch of {len(numbers)} items")
        loader: Any = trainer.predict_dataloaders
        readable = np.full(len(values), True)
        if isinstance(files := self.data.predict_dataset, Files):
            readable = files.readable.numpy()[numbers % len(files)]
        if self.format == "png":
            self.images = self.images or ImageWriter(self.folder / self.name, self.data, item_ids(loader.data))
            write = keep & readable
            chosen = values[torch.from_numpy(write)]
            chosen = chosen.movedim(self.output_spec.class_dim or 1, 1) if self.classifies else chosen
            self.images.write(numbers[write].tolist(), chosen, self.classifies)
            values = torch.empty(len(values), 0)
        true = self._true_values(module, batch, values)  # (B, T)
        self._set_record(values.numpy(), true)
        records = np.empty(len(values), self.record)
        records["true"] = true
        records["number"], records["readable"], records["values"] = numbers, readable, values.numpy()
        with write_errors(Path(self.file.name)):
            self.file.write(records[keep].tobytes())

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "file"):
            Path(self.file.name).unlink(missing_ok=True)
            with suppress(OSError):  # what is held back finds no room
                self.file.close()

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        with write_errors(Path(self.file.name)):
            self.file.close()
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            loader: Any = trainer.predict_dataloaders
            paths = [self._rank_file(rank) for rank in range(trainer.world_size)]
            self._merge(paths, loader.data)
            for path in paths:
                path.unlink()

    def _rank_file(self, rank: int) -> Path:
        return self.folder / f"{self.name}.{self.process}.{rank}.part"

    def _item_numbers(self, trainer: Trainer, batch_idx: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of a batch's items in the dataset (B,), and which of them this rank writes (B,)."""
        loader: Any = trainer.predict_dataloaders
        rank = data_parallel_rank(trainer)
        if loader.iterable:  # the ranks of a stream take turns
            numbers = rank.rank + rank.size * np.arange(self.num_items, self.num_items + size)
            keep = np.full(size, True)
        else:
            numbers = loader.epoch_sampler.positions(batch_idx).numpy()
            keep = numbers < len(loader.data)  # the others fill up the last batch
        self.num_items += size
        if trainer.global_rank % (trainer.world_size // rank.size):
            keep[:] = False  # of ranks that see the same items, the first writes
        return numbers, keep

    def _true_values(self, module: Any, batch: Any, values: Tensor) -> np.ndarray:
        """The targets of the test split's items (B, T) that a table shows beside `values`; (B, 0) of other inputs."""
        known = getattr(self.data, "predict_dataset", None) is None and not isinstance(batch, Tensor)
        # A system of one's own does not say what is what in a batch.
        split = getattr(module, "unpack_batch", lambda batch: (None, ItemFields().split(batch).target))
        target = split(batch)[1] if known else None
        if not (self.format == "csv" or self.layer) or not isinstance(target, Tensor) or len(target) != len(values):
            return np.empty((len(values), 0))
        target = target.reshape(len(values), -1)
        if target.shape[1] != 1 and (self.classifies or not (self.integer or target.shape == values.shape)):
            return np.empty((len(values), 0))
        target = target if self.true_is_class else self.data.in_unit(target)
        # Targets of Python numbers are of int64 in one batch and of float32 in another; ids may need all of 64 bits.
        is_id = self.integer and not target.is_floating_point()
        return target.to("cpu", torch.int64 if is_id else torch.float64).numpy()

    def _set_record(self, values: np.ndarray, true: np.ndarray) -> None:
        """Fixes the types of the file by them. Raises: UsageError: such a shape or type does not fit into it."""
        shape = values.shape[1:]
        png = is_picture(shape, self.classifies)
        if self.format == "csv" and len(shape) > 1:
            raise UsageError(f"an output of shape {shape} is no table: take --format {'png, ' * png}npy or pt")
        value_type = ("values", values.dtype, shape)
        record = np.dtype([("number", "i8"), ("readable", "?"), ("true", true.dtype, true.shape[1:]), value_type])
        for key, what in {"values": "outputs", "true": "targets"}.items() if self.file.tell() else ():
            if (before := self.record[key]) != (now := record[key]):
                both = f"{before.base} {before.shape} and of {now.base} {now.shape}"
                way = "take --format png" if png else "predict one file at a time: --files FILE"
                raise UsageError(f"{what} of {both} make no array: give one type and shape, or {way}")
        self.record = record

    def _merge(self, paths: list[Path], dataset: Any) -> None:
        files = [np.memmap(path, self.record, "r") for path in paths if path.stat().st_size]  # an empty one cannot be
        skipped = sorted(int(number) for file in files for number in file["number"][~file["readable"]])
        count = sum(map(len, files)) - len(skipped)
        ids = item_ids(dataset)
        path = self.folder / f"{self.name}.{self.format}"
        if self.format == "png":  # each is written already
            path = self.folder / self.name
        elif self.format == "csv":
            names = self.data.attribute("classes") if self.classifies else None
            names = names.get(self.head) if isinstance(names, dict) and self.head else names
            decode = self.data.attribute("decode") if self.integer else None
            write_table(path, _in_order(files), ids, self.classifies, names, decode)
        else:
            write_array(path, _in_order(files), count, self.record["values"])
            if ids is not None:
                numbers = (number for some in _in_order(files) for number in some["number"].tolist())
                lines = (f"{printable(ids[number])}\n" for number in numbers)  # a name may hold a newline
                write_atomically(path.with_suffix(".txt"), "".join(lines))
        if self.layer:
            stride = 1 + count // MAX_POINTS
            each = enumerate(one for some in _in_order(files) for one in some)
            chosen = [one.copy() for at, one in each if at % stride == 0]
            values, true = (np.stack([record[key] for record in chosen]) for key in ("values", "true"))
            names = self.data.attribute("classes")
            draw_components(path.with_suffix(".png"), values, true, self.true_is_class, names)
        for number in skipped:
            print(f"left out: {printable(dataset.why(number))}", file=sys.stderr)
        written = f"{count} {'file' if self.format == 'png' else 'row'}{'s' * (count != 1)}"
        print(f"{path}: {written}" + (f"; {len(skipped)} that cannot be read left out" if skipped else ""))


def _in_order(files: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """The readable records of the ranks' files, each of which is in the order of the numbers, about a MiB at a time."""
    position, at_once = [0] * len(files), max(1, 2**20 // files[0].itemsize) if files else 1
    while any(at < len(file) for at, file in zip(position, files, strict=True)):
        blocks = [np.array(file[at : at + at_once]) for at, file in zip(position, files, strict=True)]
        # Up to the least of the last numbers: what a rank has beyond it may come after another one's next block.
        end = min(int(block["number"][-1]) for block in blocks if len(block))
        blocks = [block[block["number"] <= end] for block in blocks]
        position = [at + len(block) for at, block in zip(position, blocks, strict=True)]
        records = np.concatenate(blocks)
        records = records[records["number"].argsort()]
        if records["readable"].any():
            yield records[records["readable"]]


def _by_name(outputs: Any) -> dict[str, Any]:
    """The entries of a dict or tuple of outputs, by name or by position; {} of a single output."""
    fields = outputs._asdict() if hasattr(outputs, "_asdict") else outputs
    if isinstance(fields, tuple) and not hasattr(fields, "batch_sizes"):
        return {str(at): one for at, one in enumerate(fields)}
    return fields if isinstance(fields, dict) else {}


def _main_tensor(outputs: Any, head: str | None) -> Tensor:
    """The predictions in the output of a batch, (B, ...)."""
    several = _by_name(outputs)
    if head and head not in several:
        there = f"there are: {', '.join(several)}" if several else "the network gives one output"
        raise UsageError(f"--head_name {head}{nearest(head, several)}; {there}")
    answer = several[head] if head else main_output(outputs)
    if not isinstance(answer, Tensor) or not answer.dim():
        kind = type(outputs).__name__ + (f" of {', '.join(several)}" if several else "")
        heads = [name for name, one in several.items() if isinstance(one, Tensor) and one.dim()]
        hint = f"--head_name, one of {', '.join(heads)}" if heads else "a predict_step may return one"
        raise UsageError(f"predict writes a tensor, and the network gives a {kind}: {hint}")
    return answer.detach().reshape(len(answer), -1) if answer.dim() < 2 else answer.detach()
