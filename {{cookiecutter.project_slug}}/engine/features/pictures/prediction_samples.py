"""PredictionSamples: the few predictions of an evaluation that are drawn, and its confusion matrix."""

from typing import Any

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor
from torch.nn import functional

from engine.errors import UsageError
from engine.logging.plots import find_images

_MAX_MISTAKES, _MAX_IMAGES, _MAX_PAIRS, _MAX_CLASSES = 24, 8, 5000, 1000  # that are drawn


class PredictionSamples:
    """Collects from one batch after the other; outputs of an unsuitable type or shape are ignored.

    counts: confusion matrix (C, C), items by true and predicted class. mistakes: the misclassified items with the
    highest loss: "loss", "image", "true", "predicted" and "probability" (of the predicted class). images: "input",
    "output" and "target" of the first items. masks: the same, with output and target as class indices (N, H, W).
    """

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        self.mistakes: dict[str, Tensor] = {}
        self.images: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        self._pairs: list[Tensor] = []  # of every `stride`-th item
        self._stride = 1

    @property
    def pairs(self) -> Tensor:
        """True and predicted values (N, 2), a regular sample of at most 5,000."""
        pairs = torch.cat(self._pairs) if self._pairs else torch.empty(0, 2)
        return pairs[pairs.isfinite().all(1)][:: 1 + len(pairs) // _MAX_PAIRS]

    def add_classes(self, output: Tensor, target: Tensor, images: Tensor | None) -> None:
        """output: logits (B, C) or (B, C, H, W). target: class indices (B,) or (B, H, W); negative ones are ignored."""
        if output.dim() not in (2, 4) or not 2 <= output.shape[1] <= _MAX_CLASSES or target.is_floating_point():
            return
        if target.shape != (len(output), *output.shape[2:]):
            return
        num_classes, predicted = output.shape[1], output.argmax(1)
        valid = (target >= 0) & (target < num_classes)
        pairs = (target * num_classes + predicted)[valid]
        counts = pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes).cpu()
        same_size = self.counts is not None and self.counts.shape == counts.shape
        self.counts = self.counts + counts if same_size else counts  # type: ignore[operator]
        if images is None or len(images) != len(target):
            return
        if output.dim() == 4:
            if not self.masks and images.shape[2:] == target.shape[1:]:
                masks = {"input": images, "output": predicted, "target": target.where(valid, -1)}
                self.masks = {name: mask[:_MAX_IMAGES].detach().cpu().clone() for name, mask in masks.items()}
        elif len(wrong := ((predicted != target) & valid).nonzero().flatten()):
            self._add_mistakes(output[wrong].float(), target[wrong], predicted[wrong], images[wrong])

    def _add_mistakes(self, output: Tensor, target: Tensor, predicted: Tensor, images: Tensor) -> None:
        loss = functional.cross_entropy(output, target, reduction="none")
        mistakes = {"loss": loss, "image": images, "true": target, "predicted": predicted}
        mistakes["probability"] = output.softmax(1).amax(1)
        top = loss.topk(min(_MAX_MISTAKES, len(loss))).indices
        mistakes = {name: values[top].cpu() for name, values in mistakes.items()}
        if self.mistakes:
            if mistakes["image"].shape[1:] != self.mistakes["image"].shape[1:]:
                return  # images of different sizes do not fit into one grid
            mistakes = {name: torch.cat([self.mistakes[name], values]) for name, values in mistakes.items()}
            top = mistakes["loss"].topk(min(_MAX_MISTAKES, len(mistakes["loss"]))).indices
            mistakes = {name: values[top] for name, values in mistakes.items()}
        self.mistakes = mistakes

    def add_values(self, output: Tensor, target: Tensor, images: Tensor | None) -> None:
        """output, target: numbers (B,) or (B, D), images (B, 1|3, H, W) or signals (B, 1|2, T), both of one shape."""
        if output.shape != target.shape or not output.is_floating_point():
            return
        if find_images([output]) is not None:
            rows = {"input": images, "output": output, "target": target}
            if not self.images:
                drawn = {name: row[:_MAX_IMAGES] for name, row in rows.items() if row is not None}
                self.images = {name: row.detach().cpu().clone() for name, row in drawn.items()}  # it may be reused
        elif output.dim() in (1, 2):
            pairs = torch.stack([target.flatten(), output.flatten()], 1)[:: self._stride]
            self._pairs.append(pairs.detach().float().cpu())
            if sum(map(len, self._pairs)) > 4 * _MAX_PAIRS:
                self._pairs, self._stride = [torch.cat(self._pairs)[::2]], 2 * self._stride

    def sum_counts(self, strategy: Strategy, group: Any) -> None:
        """Sums `counts` over all ranks. Each rank has to call it, also one without counts."""
        device, counts = strategy.root_device, self.counts
        size = int(strategy.reduce(torch.tensor(0 if counts is None else len(counts), device=device), group, "max"))
        if size:
            counts = torch.zeros(size, size, dtype=torch.long) if counts is None else counts
            self.counts = strategy.reduce(counts.to(device), group, "sum").cpu()


def unpack_batch(module: Any, batch: Any) -> tuple[list[Any], Any]:
    """The tensors among the inputs of a batch, and its target; nothing of a batch whose form only its step knows."""
    try:
        inputs, target = module.unpack_batch(batch)
    except UsageError:  # raised by a step of MInterface where there is none of its own
        return [], None
    values = inputs.values() if isinstance(inputs, dict) else inputs
    dense = [value.detach() for value in values if isinstance(value, Tensor) and value.layout == torch.strided]
    return dense, target
