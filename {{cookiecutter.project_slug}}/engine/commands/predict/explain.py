"""`predict --explain`: which pixels speak for a class, by captum; of the worst mistakes, or of given images."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional

from engine.checkpointing.atomic_write import atomic_file
from engine.commands.predict.layer_output import find_layer
from engine.datamodule.splits import item_ids
from engine.errors import UsageError, printable
from engine.logging import figures
from engine.training.output_spec import OutputSpec, main_output

_MAX_IMAGES = 12


class Explanations(Callback):
    """Keeps the images to explain, and draws them at the end, each beside the attributions of the predicted class and,
    of a mistake, of the true one.

    Writes explained_METHOD.png and, as explained_METHOD.npy, the attributions (items, classes, H, W), which are sums
    over the channels. Gradients are integrated from an input of zeros.

    Sources: M. Sundararajan et al., "Axiomatic attribution for deep networks", 2017; R. Selvaraju et al., "Grad-CAM",
    2017; K. Simonyan et al., "Deep inside convolutional networks", 2014 (saliency).
    """

    def __init__(self, folder: Path, method: str, data: Any, layer: str | None) -> None:
        """layer: that Grad-CAM looks at; None for the last convolution.

        Raises: UsageError: captum is not installed.
        """
        if importlib.util.find_spec("captum") is None:
            raise UsageError('--explain needs captum: pip install -e ".[explain]"')
        self.path, self.method, self.data, self.layer = folder / f"explained_{method}.png", method, data, layer
        self.kept: list[_Explained] = []
        self.seen = 0

    def on_predict_start(self, trainer: Trainer, module: Any) -> None:
        if getattr(module, "predicts", OutputSpec("other")).task != "multiclass":
            raise UsageError("--explain needs a network that predicts one of several classes; this one does not")
        if trainer.world_size > 1:
            raise UsageError("--explain works on one device: --devices 1")
        if self.method == "grad_cam":
            self._find_layer(module)

    def on_predict_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        args, kwargs = module.arguments(batch)
        logits = main_output(outputs).float()
        if kwargs or len(args) != 1 or args[0].dim() != 4 or logits.dim() != 2:
            raise UsageError("--explain takes networks with one input, an image (C, H, W), and logits (classes) for it")
        if (given := self.data.predict_dataset) is not None:
            true, loss = torch.full((len(logits),), -1), torch.zeros(len(logits))
            readable = getattr(given, "readable", torch.ones(len(given), dtype=torch.bool))
            chosen = readable[self.seen : self.seen + len(logits)]
        else:
            if (true := module.batch_fields(batch).target) is None:
                raise UsageError("--explain explains mistakes, and the items have no target: give --images")
            loss = functional.cross_entropy(logits, true, reduction="none", ignore_index=module.ignore_index)
            chosen = (logits.argmax(1) != true) & (true != module.ignore_index)
        for at in chosen.nonzero().flatten().tolist():
            image, shares = args[0][at].clone(), logits[at].softmax(0).clone()
            self.kept.append(_Explained(loss[at].item(), self.seen + at, image, shares, int(true[at])))
        self.kept = sorted(self.kept, key=lambda one: (-one.loss, one.number))[:_MAX_IMAGES]
        self.seen += len(logits)

    def on_predict_end(self, trainer: Trainer, module: Any) -> None:
        if not self.kept:
            print("--explain: there is no mistake to explain")
            return
        with torch.inference_mode(False), torch.enable_grad():
            images = torch.stack([one.image for one in self.kept]).clone()
            classes = [torch.tensor([int(one.shares.argmax()) for one in self.kept], device=images.device)]
            if any(one.true >= 0 for one in self.kept):
                classes.append(torch.tensor([one.true for one in self.kept], device=images.device))
            maps = torch.stack([self._attribute(module, images, one) for one in classes], 1)  # (N, classes, H, W)
        array, picture = maps.detach().float().cpu().numpy(), images.detach().float().cpu()
        with atomic_file(self.path.with_suffix(".npy")) as part, part.open("wb") as file:
            np.save(file, array)
        ids = item_ids(trainer.predict_dataloaders.data)  # type: ignore[union-attr]
        figures.write_png(self.path, figures.render(partial(self._draw, picture, array, ids)))
        print(self.path, self.path.with_suffix(".npy"), sep="\n")

    def _attribute(self, module: Any, images: Tensor, classes: Tensor) -> Tensor:
        """The attributions (N, H, W) of classes (N,) in images (N, C, H, W)."""
        from captum import attr

        def forward(images: Tensor) -> Tensor:
            return main_output(module(images))

        if self.method == "grad_cam":
            cam = attr.LayerGradCam(forward, self._find_layer(module))
            coarse = cam.attribute(images, target=classes, relu_attributions=True)
            return attr.LayerAttribution.interpolate(coarse, tuple(images.shape[2:]), "bilinear").sum(1)
        images = images.requires_grad_()
        if self.method == "integrated_gradients":
            return attr.IntegratedGradients(forward).attribute(images, target=classes, internal_batch_size=64).sum(1)
        kind = attr.Saliency if self.method == "saliency" else attr.InputXGradient
        return kind(forward).attribute(images, target=classes).sum(1)

    def _find_layer(self, module: Any) -> nn.Module:
        if self.layer:
            return find_layer(module, self.layer)
        convolutions = [one for one in module.modules() if isinstance(one, nn.Conv2d)]
        if not convolutions:
            raise UsageError("--explain grad_cam looks at a layer that gives images, and there is no convolution")
        return convolutions[-1]

    def _draw(self, images: Tensor, maps: np.ndarray, ids: list[str] | None) -> Any:
        """A row for each image: itself, and each of its attributions, red for and blue against the class."""
        names = self.data.attribute("classes")
        columns = 1 + maps.shape[1]
        figure = figures.new_figure(2.2 * columns, 2.5 * len(images))
        axes = figure.subplots(len(images), columns, squeeze=False)
        for row, kept, image, attributions in zip(axes, self.kept, images, maps, strict=True):
            low, high = image.aminmax()
            pixels = ((image - low) / (high - low).clamp(min=1e-12)).movedim(0, -1).mean(-1)
            said, texts = int(kept.shares.argmax()), [printable(ids[kept.number]) if ids else f"{kept.number}"]
            texts += [f"{names[one] if names else one}: {kept.shares[one]:.2f}" for one in (said, kept.true)]
            row[0].imshow(pixels.numpy(), cmap="gray")
            for ax, attribution in zip(row[1:], attributions, strict=True):
                most = max(abs(attribution).max(), 1e-30)
                ax.imshow(attribution, cmap="RdBu_r", vmin=-most, vmax=most)
            for ax, text, what in zip(row, texts, ("", "predicted ", "true "), strict=False):
                ax.set_title(what + text[-28:], fontsize=8, parse_math=False)
                ax.set_axis_off()
        return figure


class _Explained(NamedTuple):
    """An image to explain. shares: the probabilities of the classes. true: the right class, or -1."""

    loss: float
    number: int
    image: Tensor
    shares: Tensor
    true: int
