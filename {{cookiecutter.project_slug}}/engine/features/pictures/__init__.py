"""Pictures of a run as PNG and in TensorBoard: curves, first batch, confusion matrix, mistakes, sample images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from engine.checkpointing.atomic_write import warn_if_unwritable
from engine.features.pictures.metric_curves import curves
from engine.features.pictures.prediction_samples import PredictionSamples, unpack_batch
from engine.launch.data_parallel_rank import data_parallel_rank
from engine.logging import figures, plots
from engine.logging.plots import find_images

_FIRST_BATCH_IMAGES = 32
_ARROW = "\N{RIGHTWARDS ARROW}"


def callbacks(run_dir: Path, data: Any, *, pictures: bool = True) -> list[Callback]:
    """pictures: draw curves, first batch, confusion matrix and worst mistakes, as PNG and in TensorBoard."""
    return [Pictures(run_dir, data)] if pictures else []


class Pictures(Callback):
    """Draws the first training batch, the metrics, and samples of the test split, or else of the validation split.

    Counts are summed over all ranks; images, or signals (1|2, T), are from rank 0. Batches and outputs of an unsuitable
    type or shape get no picture. Outputs are read from `module.last_output`.
    """

    def __init__(self, run_dir: Path, data: Any) -> None:
        self.run_dir, self.data, self.split, self.samples = run_dir, data, "", PredictionSamples()

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        path = self.run_dir / "first_batch.png"
        self.on_train_batch_start = None  # type: ignore[method-assign, assignment]  # Lightning skips it from now on
        done = trainer.fit_loop.total_batch_idx or path.exists()
        if done or not trainer.is_global_zero or not hasattr(module, "unpack_batch"):  # of a LightningModule
            return
        inputs, target = unpack_batch(module, batch)
        if (images := find_images(inputs)) is not None:
            images = images[:_FIRST_BATCH_IMAGES]
            labels = self._labels(module, target, len(images))
            title = f"the first {len(images)} items of the first batch"
            save_figure(trainer, path, lambda: plots.images(images.split(8), labels, title))

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        self.split = "validation" if fitting and self.data.split("test") is None else ""
        self.samples = PredictionSamples()

    def on_test_start(self, trainer: Trainer, module: Any) -> None:
        self.split, self.samples = "test", PredictionSamples()

    def on_test_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx:  # a set beside the split
            return
        if batch_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking:
            self._draw_module_pictures(trainer, module, batch)
        if not hasattr(module, "unpack_batch"):
            return
        output, module.last_output = getattr(module, "last_output", None), None
        inputs, target = unpack_batch(module, batch)
        if not (self.split and isinstance(output, Tensor) and isinstance(target, Tensor) and len(output)):
            return
        inputs, target = [value[: len(output)] for value in inputs], target[: len(output)]  # without padding
        images = find_images(inputs)
        if getattr(module, "has_binary_logits", False) and output.shape == target.shape and output.dim() <= 2:
            logit = output.flatten()
            logits = torch.stack([torch.zeros_like(logit), logit], 1)
            self.samples.add_classes(logits, target.flatten().round().long(), images)
        elif getattr(module, "is_multiclass", False):
            self.samples.add_classes(output, target, images)
        else:
            self.samples.add_values(self.data.in_unit(output), self.data.in_unit(target), images)

    on_validation_batch_end = on_test_batch_end  # type: ignore[assignment]

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self._draw_samples(trainer)
        if self.data.split("test") is None or not trainer.limit_test_batches:  # else they wait for the test metrics
            self._draw_curves(trainer)

    def on_test_end(self, trainer: Trainer, module: Any) -> None:
        self._draw_samples(trainer)
        self._draw_curves(trainer)

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        self._draw_curves(trainer)

    def _draw_curves(self, trainer: Trainer) -> None:
        csv_path = self.run_dir / "metrics.csv"
        if trainer.is_global_zero and trainer.loggers and csv_path.exists():
            save_figure(trainer, self.run_dir / "curves.png", lambda: curves(csv_path))

    def _draw_module_pictures(self, trainer: Trainer, module: Any, batch: Any) -> None:
        """Draws what `module.sample_images(batch)` returns, with averaged weights where these are validated."""
        for name, images in module.sample_images(batch).items() if hasattr(module, "sample_images") else ():
            rows = images if isinstance(images, dict) else dict(enumerate(images.split(8)))
            if all(find_images([row]) is not None for row in rows.values()):
                row_names = [*rows] if isinstance(images, dict) else []
                title = f"{name} after {trainer.global_step:,} steps" if trainer.state.fn == "fit" else name
                draw = partial(plots.images, [*rows.values()], [], title, row_names)
                save_figure(trainer, self.run_dir / f"{name}.png", draw)

    def _draw_samples(self, trainer: Trainer) -> None:
        samples, rank = self.samples, data_parallel_rank(trainer)
        if rank.size > 1:
            samples.sum_counts(trainer.strategy, rank.group)
        if not trainer.is_global_zero:
            return

        def save(name: str, draw: Callable[..., Any], *args: Any) -> None:
            save_figure(trainer, self.run_dir / f"{name}.png", partial(draw, *args))

        split = f"{self.split} split" + ("" if rank.size == 1 else f", first of {rank.size} processes")
        names = self._class_names(0 if samples.counts is None else len(samples.counts))
        if (counts := samples.counts) is not None and counts.sum():
            total = f"{int(counts.sum()):,}{' pixels' if samples.masks else ''}"
            title = f"{self.split} split: {100 * counts.trace() / counts.sum():.2f}% of {total} correct"
            save("confusion_matrix", plots.confusion_matrix, counts, names, title)
        if mistakes := samples.mistakes:
            columns = (mistakes[name].tolist() for name in ("true", "predicted", "probability"))
            gap = "\n" if max(map(len, names)) > 6 else " "
            triples = zip(*columns, strict=True)
            labels = [f"{names[true]}{gap}{_ARROW} {names[said]}\n{100 * share:.0f}%" for true, said, share in triples]
            title = f"worst mistakes of the {split}: true {_ARROW} predicted"
            save("mistakes", plots.images, mistakes["image"].split(8), labels, title)
        if len(samples.pairs):
            save("predicted", plots.scatter, samples.pairs, split)
        if masks := dict(samples.masks):
            save("masks", plots.masks, masks.pop("input"), masks, names, f"first items of the {split}")
        if rows := dict(samples.images):
            rows |= {name: plots.scaled_like(rows[name], rows["target"]) for name in ("output", "target")}
            save("images", plots.images, [*rows.values()], [], f"first items of the {split}", [*rows])

    def _class_names(self, num_classes: int) -> list[str]:
        """The names in the dataset's `classes`, cut to 14 letters, or else the class indices."""
        names = self.data.attribute("classes")
        if not isinstance(names, list | tuple) or len(names) != num_classes:
            return [str(index) for index in range(num_classes)]
        return [name if len(name) <= 14 else f"{name[:13]}\N{HORIZONTAL ELLIPSIS}" for name in map(str, names)]

    def _labels(self, module: Any, target: Any, count: int) -> list[str]:
        """The targets of the first `count` items as text; [] where a target is not a single number."""
        if not isinstance(target, Tensor) or target.dim() != 1 or len(target) < count:
            return []
        target = target[:count]
        if target.is_floating_point() or not getattr(module, "is_multiclass", False):
            return [f"{value:.3g}" for value in self.data.in_unit(target).tolist()]
        classes = self.data.attribute("classes")
        names = self._class_names(len(classes)) if isinstance(classes, list | tuple) else []
        return [names[index] if 0 <= index < len(names) else str(index) for index in target.tolist()]


def save_figure(trainer: Trainer, path: Path, draw: Callable[[], Any]) -> None:
    """Renders a figure once, as a PNG file and for TensorBoard and Weights & Biases; a full disk is only reported.

    draw: returns the figure, or None where there is nothing to draw.
    """
    if (pixels := figures.render(draw)) is None:
        return
    with warn_if_unwritable(path):
        figures.write_png(path, pixels)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(path.stem, pixels, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger) and path.exists():
            logger.log_image(path.stem, [str(path)])
