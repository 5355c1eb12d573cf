"""`predict --layer`: the output of a layer in place of the network's, and a picture of its principal components."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from engine.errors import UsageError, nearest
from engine.logging import figures
from engine.training.name_patterns import find_network

MAX_POINTS, _MAX_CLASSES = 5000, 20  # that are drawn; that get a colour and a name of their own


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """The submodule of the network of that name. Raises: UsageError: there is none; the message names those there are.

    module: the LightningModule.
    """
    layers = {key: one for key, one in find_network(module).named_modules() if key}
    if name not in layers:
        raise UsageError(f"--layer {name}{nearest(name, layers)}; there are: {', '.join(layers)}")
    return layers[name]


class LayerOutput:
    """The output of a layer, batch by batch."""

    def __init__(self, name: str) -> None:
        self.name, self.kept = name, list[Any]()

    def attach(self, module: nn.Module) -> None:
        """Keeps the outputs of the layer from now on. Raises: UsageError: the network has no such layer."""
        find_layer(module, self.name).register_forward_hook(lambda layer, inputs, output: self.kept.append(output))

    def take(self) -> Any:
        """The output for the latest batch. Raises: UsageError: it ran never, or several times."""
        outputs, self.kept = self.kept, []
        if len(outputs) != 1:
            such = "around it" if outputs else "that the network calls itself"
            runs = f"it runs {len(outputs)} times a batch"
            raise UsageError(f"--layer {self.name}: {runs}: name one that runs once, such as one {such}")
        return outputs[0]


def draw_components(path: Path, values: np.ndarray, true: np.ndarray, is_class: bool, names: Any) -> None:
    """Draws the first two principal components of values (N, ...), coloured by true values (N, 1); (N, 0) gives none.

    is_class: the true values are classes, which may have names. Nothing is drawn of fewer than three items, or equal.
    """
    features = values.reshape(len(values), -1)  # (N, D)
    if len(features) < 3 or features.shape[1] < 2 or not np.isfinite(features).all() or (features == features[0]).all():
        return
    from sklearn.decomposition import PCA  # not needed otherwise

    pca = PCA(2, random_state=0)
    points = pca.fit_transform(features)
    draw = partial(_scatter, path.stem, points, pca.explained_variance_ratio_, true, is_class, names)
    figures.write_png(path, figures.render(draw))
    print(path)


def _scatter(title: str, points: np.ndarray, shares: Any, true: np.ndarray, is_class: bool, names: Any) -> Any:
    figure = figures.new_figure(6, 5)
    axes = figure.subplots()
    kinds = np.unique(true) if is_class and true.shape[1] == 1 else np.empty(0)
    if 0 < len(kinds) <= _MAX_CLASSES:
        for kind in kinds:
            chosen = points[true[:, 0] == kind]
            label = str(names[int(kind)] if names and kind >= 0 else int(kind))
            look = {"color": f"C{int(kind) % 10}", "marker": "o" if kind < 10 else "^"}
            axes.scatter(chosen[:, 0], chosen[:, 1], s=8, label=label, **look)
        figure.legend(loc="outside right upper")
    elif true.shape[1] == 1:
        figure.colorbar(axes.scatter(points[:, 0], points[:, 1], s=8, c=true[:, 0]), label="true")
    else:
        axes.scatter(points[:, 0], points[:, 1], s=8)
    axes.set(**{f"{axis}label": f"component {at + 1}: {shares[at]:.0%}" for at, axis in enumerate("xy")})
    axes.set_title(title, parse_math=False)
    return figure
