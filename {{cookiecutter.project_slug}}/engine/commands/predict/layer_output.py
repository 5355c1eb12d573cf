"""`predict --layer`: the output of a layer in place of the network's, and a picture of its principal components."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import UsageError, nearest
from engine.logging import plots

MAX_POINTS, _MAX_CLASSES = 5000, 20  # that are drawn; that get a colour and a name of their own


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """The submodule of the network of that name. Raises: UsageError: there is none; the message names those there are.

    module: the LightningModule.
    """
    layers = {key: one for key, one in (getattr(module, "network", None) or module).named_modules() if key}
    if name not in layers:
        raise UsageError(f"--layer {name}{nearest(name, layers)}; there are: {', '.join(layers)}")
    return layers[name]


class LayerOutput:
    """The output of a layer, batch by batch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._outputs: list[Any] = []

    def attach(self, module: nn.Module) -> None:
        """Keeps the outputs of the layer from now on. Raises: UsageError: the network has no such layer."""
        layer = find_layer(module, self.name)
        layer.register_forward_hook(lambda layer, inputs, output: self._outputs.append(output))

    def forget(self) -> None:
        """Drops the outputs of earlier batches."""
        self._outputs.clear()

    def take(self) -> Any:
        """The output for the latest batch. Raises: UsageError: it ran never, or several times."""
        outputs, self._outputs[:] = [*self._outputs], []
        if len(outputs) != 1:
            such = "around it" if outputs else "that the network calls itself"
            runs = f"it runs {len(outputs)} times a batch"
            raise UsageError(f"--layer {self.name}: {runs}: name one that runs once, such as one {such}")
        return outputs[0]


def draw_components(path: Path, values: np.ndarray, true: np.ndarray, is_class: bool, names: Any) -> None:
    """Draws the first two principal components of values (N, ...), coloured by true values (N, 1); (N, 0) gives none.

    is_class: the true values are classes, which may have names. Nothing is drawn of fewer than three items.
    """
    features = torch.from_numpy(values).float().flatten(1)  # (N, D)
    if len(features) < 3 or features.shape[1] < 2 or not features.isfinite().all():
        return
    draw = partial(_scatter, path.stem, *_components(features), true, is_class, names)
    plots.write_png(path, plots.render(draw))
    print(path)


def _scatter(title: str, points: Tensor, shares: list[float], true: np.ndarray, is_class: bool, names: Any) -> Any:
    figure = plots.new_figure(6, 5)
    axes = figure.subplots()
    kinds = np.unique(true) if is_class and true.shape[1] == 1 else np.empty(0)
    if 0 < len(kinds) <= _MAX_CLASSES:
        for kind in kinds:
            chosen = points[torch.from_numpy(true[:, 0] == kind)]
            label = str(names[int(kind)] if names and kind >= 0 else int(kind))
            look = {"color": f"C{int(kind) % 10}", "marker": "o" if kind < 10 else "^"}
            axes.scatter(chosen[:, 0], chosen[:, 1], s=8, label=label, **look)
        figure.legend(loc="outside right upper")
    elif true.shape[1] == 1:
        figure.colorbar(axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=8, c=true[:, 0]), label="true")
    else:
        axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=8)
    axes.set(**{f"{axis}label": f"component {at + 1}: {shares[at]:.0%}" for at, axis in enumerate("xy")})
    axes.set_title(title, parse_math=False)
    return figure


def _components(features: Tensor) -> tuple[Tensor, list[float]]:
    """The first two principal components (N, 2) of features (N, D), and the share of the variance of each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        directions = torch.pca_lowrank(features, q=min(6, *features.shape), niter=8)[2]
    centred = features - features.mean(0)
    points = centred @ directions[:, :2]
    return points, (points.square().sum(0) / centred.square().sum().clamp(min=1e-30)).tolist()
