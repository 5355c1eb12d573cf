"""Pictures of a run, in its folder and in TensorBoard: curves, the first batch, and what the network got wrong."""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from engine.features.pictures import plots
from engine.features.pictures.curves import curves
from engine.features.pictures.prediction_samples import PredictionSamples, apart, image
from engine.launch.data_parallel import data_parallel_rank

_BATCH = 32  # images of the first batch that are drawn


def callbacks(folder: Path, model: Any, data: Any, *, pictures: bool = True) -> list[Callback]:
    """pictures: draw curves, first batch, confusion matrix and worst mistakes, as PNG and in TensorBoard."""
    return [Pictures(folder, data)] if pictures else []


class Pictures(Callback):
    """Looks at the first training batch and at what is tested (validated, where there is no test part).

    Counts are summed over all processes; images are of the first one's share. A network whose batches or outputs are
    of another kind gets no picture of that kind. What came out is read from `module.last_output`.
    """

    def __init__(self, folder: Path, data: Any) -> None:
        self.folder, self.data, self.part, self.seen = folder, data, "", PredictionSamples()

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        path = self.folder / "first_batch.png"
        self.on_train_batch_start = None  # type: ignore[method-assign, assignment]  # which spares the other calls
        if trainer.fit_loop.total_batch_idx or not trainer.is_global_zero or path.exists():
            return
        inputs, target = apart(module, batch)
        if (images := image(inputs)) is not None:
            images = images[:_BATCH]
            labels = self._labels(module, target, len(images))
            title = f"the first {len(images)} items of the first batch"
            show(trainer, path, lambda: plots.images(images.split(8), labels, title))

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        fits = trainer.state.fn == "fit" and not trainer.sanity_checking
        self.part, self.seen = "validation" if fits and self.data.split("test") is None else "", PredictionSamples()

    def on_test_start(self, trainer: Trainer, module: Any) -> None:
        self.part, self.seen = "test", PredictionSamples()

    def on_test_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking:
            self._own(trainer, module, batch)
        output, module.last_output = getattr(module, "last_output", None), None
        inputs, target = apart(module, batch)
        if not (self.part and isinstance(output, Tensor) and isinstance(target, Tensor) and len(output)):
            return
        inputs, target = [one[: len(output)] for one in inputs], target[: len(output)]  # the rest filled the batch up
        if getattr(module, "has_binary_logits", False) and output.shape == target.shape and output.dim() <= 2:
            yes = output.flatten()  # its logit, and that of no is 0
            self.seen.classes(torch.stack([0 * yes, yes], 1), target.flatten().round().long(), image(inputs))
        elif getattr(module, "is_multiclass", False):
            self.seen.classes(output, target, image(inputs))
        else:
            self.seen.values(output, target, image(inputs))

    on_validation_batch_end = on_test_batch_end  # type: ignore[assignment]

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self._draw(trainer, module)
        if self.data.split("test") is None or not trainer.limit_test_batches:  # else they wait for the test's points
            self._curves(trainer)

    def on_test_end(self, trainer: Trainer, module: Any) -> None:
        self._draw(trainer, module)
        self._curves(trainer)

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        self._curves(trainer)

    def _curves(self, trainer: Trainer) -> None:
        table = self.folder / "metrics.csv"
        if trainer.is_global_zero and trainer.loggers and table.exists():
            show(trainer, self.folder / "curves.png", lambda: curves(table))

    def _own(self, trainer: Trainer, module: Any, batch: Any) -> None:
        """Draws what a system wants to be seen of itself (with averaged weights, where they are what is validated)."""
        for name, shown in module.sample_images(batch).items() if hasattr(module, "sample_images") else ():
            rows = shown if isinstance(shown, dict) else dict(enumerate(shown.split(8)))
            if all(image([row]) is not None for row in rows.values()):
                words = [*rows] if isinstance(shown, dict) else []
                title = f"{name} after {trainer.global_step:,} steps" if trainer.state.fn == "fit" else name
                draw = partial(plots.images, [*rows.values()], [], title, words)
                show(trainer, self.folder / f"{name}.png", draw)

    def _draw(self, trainer: Trainer, module: Any) -> None:
        """Draws what was gathered."""
        seen = self.seen
        here = data_parallel_rank(trainer)
        if here.size > 1:
            seen.sum_counts(trainer.strategy, here.group)
        if not trainer.is_global_zero:
            return
        share = "" if here.size == 1 else f", first of {here.size} processes"
        names = self._names(0 if seen.counts is None else len(seen.counts))
        if (counts := seen.counts) is not None and counts.sum():
            many = f"{int(counts.sum()):,}{' pixels' if seen.masks else ''}"
            title = f"{self.part} part: {100 * counts.trace() / counts.sum():.2f}% of {many} right"
            show(trainer, self.folder / "confusion_matrix.png", lambda: plots.confusion(counts, names, title))
        if worst := seen.worst:
            said = zip(worst["true"].tolist(), worst["guess"].tolist(), worst["p"].tolist(), strict=True)
            apart = "\n" if max(map(len, names)) > 6 else " "
            arrow = f"{apart}\N{RIGHTWARDS ARROW} "
            labels = [f"{names[true]}{arrow}{names[guess]}\n{100 * p:.0f}%" for true, guess, p in said]
            title = f"worst mistakes of the {self.part} part{share}: true \N{RIGHTWARDS ARROW} predicted"
            show(trainer, self.folder / "mistakes.png", lambda: plots.images(worst["image"].split(8), labels, title))
        if len(pairs := seen.pairs):
            title = f"{self.part} part{share}"
            show(trainer, self.folder / "predicted.png", lambda: plots.predicted(pairs, title))
        if masks := dict(seen.masks):
            of, title = masks.pop("input"), f"first items of the {self.part} part{share}"
            show(trainer, self.folder / "masks.png", lambda: plots.masks(of, masks, names, title))
        if rows := dict(seen.rows):
            rows |= {name: plots.alike(rows[name], rows["target"]) for name in plots.of_one_range(rows)}
            title = f"first items of the {self.part} part{share}"
            show(trainer, self.folder / "images.png", lambda: plots.images([*rows.values()], [], title, [*rows]))

    def _names(self, many: int) -> list[str]:
        """The classes, by the names that the dataset has for them, or else by number."""
        names = self.data.attribute("classes")
        if not isinstance(names, list | tuple) or len(names) != many:
            return [str(number) for number in range(many)]
        return [name if len(name) <= 14 else f"{name[:13]}\N{HORIZONTAL ELLIPSIS}" for name in map(str, names)]

    def _labels(self, module: Any, target: Any, many: int) -> list[str]:
        if not isinstance(target, Tensor) or target.dim() != 1 or len(target) < many:
            return []
        target = target[:many]
        if target.is_floating_point() or not getattr(module, "is_multiclass", False):
            return [f"{value:.3g}" for value in target.tolist()]
        classes = self.data.attribute("classes")
        names = self._names(len(classes)) if isinstance(classes, list | tuple) else []
        return [names[number] if 0 <= number < len(names) else str(number) for number in target.tolist()]


def show(trainer: Trainer, path: Path, draw: Callable[[], Any]) -> None:
    """Draws a picture once, writes it to `path` and hands it to TensorBoard and Weights & Biases.

    draw: makes the figure, or None where there is nothing to draw. A full disk costs the picture, not the run.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    with matplotlib.rc_context(plots.style()), warnings.catch_warnings():
        # Of class names in letters that no font here has, or of great length.
        warnings.filterwarnings("ignore", "Glyph .* missing from|constrained_layout not applied")
        if (figure := draw()) is None:
            return
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    try:
        imsave(path, pixels)
    except OSError as error:
        print(f"{path} is not drawn: {error.strerror}", file=sys.stderr)
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(path.stem, pixels, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(path.stem, [str(path)])
