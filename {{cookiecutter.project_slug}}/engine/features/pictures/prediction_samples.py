"""What engine/pictures.py keeps of the outputs that it draws; goes with that file."""

from typing import Any

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor
from torch.nn import functional

_MISTAKES, _ROWS, _POINTS = 24, 8, 5000  # how many are drawn
_MOST_CLASSES = 1000  # a matrix of more is no picture


class PredictionSamples:
    """Looks at one output after the other and keeps little; an output of another kind is passed over.

    counts: (C, C), items by true and by predicted class. worst: of the mistakes with the greatest loss their "loss",
    "image", "true", "guess" and "p", the probability of the guess. rows: "input", "output" and "target" images.
    masks: the same where output and target are class numbers (N, H, W).
    """

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        self.worst: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        self._pairs: list[Tensor] = []  # of every `stride`-th item
        self._stride = 1

    @property
    def pairs(self) -> Tensor:
        """True and predicted values (N, 2), 5,000 of them at most."""
        pairs = torch.cat(self._pairs) if self._pairs else torch.empty(0, 2)
        return pairs[pairs.isfinite().all(1)][:: 1 + len(pairs) // _POINTS]

    def classes(self, output: Tensor, target: Tensor, images: Tensor | None) -> None:
        """output: logits (B, C) or (B, C, H, W). target: class numbers (B,) or (B, H, W), below 0: does not count."""
        if output.dim() not in (2, 4) or not 2 <= output.shape[1] <= _MOST_CLASSES or target.is_floating_point():
            return
        if target.shape != (len(output), *output.shape[2:]):
            return
        many, images = output.shape[1], images if images is not None and len(images) == len(target) else None
        guess, known = output.argmax(1), (target >= 0) & (target < many)
        counts = (target * many + guess)[known].bincount(minlength=many**2).view(many, many).cpu()
        if self.counts is not None and self.counts.shape == counts.shape:
            counts = counts + self.counts
        self.counts = counts
        if output.dim() == 4:
            if not self.masks and images is not None and images.shape[2:] == target.shape[1:]:
                rows = {"input": images, "output": guess, "target": target.where(known, -1)}
                self.masks = {name: row[:_ROWS].detach().cpu() for name, row in rows.items()}
            return
        wrong = ((guess != target) & known).nonzero().flatten()
        if images is not None and len(wrong):
            self._mistakes(output[wrong].float(), target[wrong], guess[wrong], images[wrong])

    def _mistakes(self, output: Tensor, target: Tensor, guess: Tensor, images: Tensor) -> None:
        loss = functional.cross_entropy(output, target, reduction="none")
        top = loss.topk(min(_MISTAKES, len(loss))).indices
        found = {"loss": loss, "image": images, "true": target, "guess": guess, "p": output.softmax(1).amax(1)}
        found = {name: one[top].cpu() for name, one in found.items()}
        if self.worst:
            if found["image"].shape[1:] != self.worst["image"].shape[1:]:
                return  # images of several sizes fit no grid
            found = {name: torch.cat([self.worst[name], one]) for name, one in found.items()}
        best = found["loss"].topk(min(_MISTAKES, len(found["loss"]))).indices
        self.worst = {name: one[best] for name, one in found.items()}

    def values(self, output: Tensor, target: Tensor, images: Tensor | None) -> None:
        """output, target: numbers (B,) or (B, D), or images (B, 1|3, H, W), both of the same shape."""
        if output.shape != target.shape or not output.is_floating_point():
            return
        if image([output]) is not None:
            rows = {"input": images, "output": output, "target": target}
            if not self.rows:
                self.rows = {name: row[:_ROWS].detach().cpu() for name, row in rows.items() if row is not None}
        elif output.dim() in (1, 2):
            pairs = torch.stack([target.flatten(), output.flatten()], 1)[:: self._stride]
            self._pairs.append(pairs.detach().float().cpu())
            if sum(map(len, self._pairs)) > 4 * _POINTS:
                self._pairs, self._stride = [torch.cat(self._pairs)[::2]], 2 * self._stride

    def sum_counts(self, strategy: Strategy, group: Any) -> None:
        """Counts of all processes together. Every process has to ask, also one that has none."""
        device, own = strategy.root_device, self.counts
        many = int(strategy.reduce(torch.tensor(0 if own is None else len(own), device=device), group, "max"))
        if many:
            own = torch.zeros(many, many, dtype=torch.long) if own is None else own
            self.counts = strategy.reduce(own.to(device), group, "sum").cpu()


def image(inputs: list[Any]) -> Tensor | None:
    """The first of the inputs that is images (B, 1|3, H, W); of clips (B, K, 1|3, H, W) the frame in the middle."""
    for one in inputs:
        if isinstance(one, Tensor) and one.dim() == 5 and one.shape[2] in (1, 3):
            one = one[:, one.shape[1] // 2]
        if isinstance(one, Tensor) and one.dim() == 4 and one.shape[1] in (1, 3) and one.numel():
            return None if one.is_complex() else one
    return None


def apart(module: Any, batch: Any) -> tuple[list[Any], Any]:
    """The inputs and the target of a batch; a tensor is all input, and what is of another kind has none."""
    if isinstance(batch, Tensor):
        return [batch], None
    if (isinstance(batch, list | tuple) and len(batch) > 1) or (isinstance(batch, dict) and "target" in batch):
        inputs, target = module.unpack_batch(batch)
        return list(inputs.values() if isinstance(inputs, dict) else inputs), target
    return [], None
