"""Matplotlib figures of tensors, for TensorBoard, the pictures of a run, reports and previews."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.logging.figures import new_figure

_MAX_PIXELS = 160  # height and width to which larger images are reduced
_MAX_BINS = 300  # of a signal


def find_images(inputs: list[Any]) -> Tensor | None:
    """The first input that is images (B, 1|3, H, W), or the middle frames of clips (B, T, 1|3, H, W).

    Without these, the first that is signals of one or two channels (B, 1|2, T).
    """
    for tensor in inputs:
        if isinstance(tensor, Tensor) and tensor.dim() == 5 and tensor.shape[2] in (1, 3):
            tensor = tensor[:, tensor.shape[1] // 2]
        if isinstance(tensor, Tensor) and tensor.dim() == 4 and tensor.shape[1] in (1, 3) and tensor.numel():
            return None if tensor.is_complex() else tensor
    return next((one for one in inputs if _are_signals(one)), None)


def _are_signals(value: Any) -> bool:
    is_long = isinstance(value, Tensor) and value.dim() == 3 and value.shape[1] in (1, 2) and value.shape[2] > 2
    return bool(is_long and value.is_floating_point() and value.numel())


def images(rows: Sequence[Tensor], labels: Sequence[str], title: str, row_names: Sequence[str] = ()) -> Any:
    """Images in a grid, with a label above each; or signals, as lines.

    rows: images (N, 1|3, H, W) or signals (N, 1|2, T) of any range: each is scaled by its own minimum and maximum;
        bytes are not scaled.
    labels: of all images, row by row; or empty. row_names: left of each row.
    """
    height, width = rows[0].shape[-2:] if rows[0].dim() == 4 else (2, 3)
    lines = 1 + max((label.count("\n") for label in labels), default=-1)
    ratio = min(max(height / width, 0.2), 5.0)
    columns = max(map(len, rows))
    gap = 0.06 + 0.16 * lines
    inches = min(1.05, 10 / columns)
    figure = new_figure(max(columns * inches, 4.5) + 0.3, len(rows) * (ratio + gap) * inches + 0.4)
    axes = figure.subplots()
    for row_index, row in enumerate(rows):
        top = row_index * (ratio + gap) + gap
        for column, image in enumerate(_pixels(row) if row.dim() == 4 else _lines(row)):
            extent = (column + 0.03, column + 0.97, top + 0.97 * ratio, top + 0.03 * ratio)
            if row.dim() == 4:
                axes.imshow(image, extent=extent, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:  # (T, channels)
                across = np.linspace(*extent[:2], len(image))
                axes.plot(across, extent[2] + image * (extent[3] - extent[2]), linewidth=0.6)
            if labels:
                label = labels[sum(map(len, rows[:row_index])) + column]
                options = {"ha": "center", "va": "bottom", "parse_math": False}
                axes.text(column + 0.5, top, label, fontsize=8, linespacing=1.1, **options)
        if row_names:
            axes.text(-0.05, top + ratio / 2, row_names[row_index], ha="right", va="center")
    axes.set(xlim=(0, columns), ylim=(len(rows) * (ratio + gap), 0), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, parse_math=False)
    return figure


def masks(inputs: Tensor, rows: dict[str, Tensor], names: Sequence[str], title: str) -> Any:
    """Images (N, 1|3, H, W), and below them each of `rows`: class indices (N, H, W) in color over the grey image.

    Negative class indices are not colored. names: of the classes.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    palette = torch.tensor(colormaps["tab10" if len(names) <= 10 else "tab20"].colors)  # type: ignore[attr-defined]
    grey = _scaled(inputs).mean(1, keepdim=True)
    colored_rows = [inputs]
    for mask in rows.values():
        color = palette[mask.clamp_min(0) % len(palette)].movedim(-1, 1)  # (N, 3, H, W)
        valid = (mask >= 0)[:, None]
        colored_rows.append((255 * (0.4 * grey + 0.6 * color.where(valid, grey))).byte())
    figure = images(colored_rows, [], title, ["input", *rows])
    classes = torch.cat([mask.unique() for mask in rows.values()]).unique().tolist()
    colors = palette.tolist()
    patches = [Patch(color=colors[i % len(colors)], label=names[i]) for i in classes if i >= 0]
    figure.legend(handles=patches[:20], loc="outside lower center", ncols=min(len(patches), 5), frameon=False)
    return figure


def _pixels(images: Tensor) -> Any:
    """(N, 1|3, H, W) -> (N, H, W) or (N, H, W, 3) in 0..1, reduced to _MAX_PIXELS. Bytes are 0..255."""
    scaled = images.detach().float().cpu() / (255 if images.dtype == torch.uint8 else 1)
    if (side := max(images.shape[-2:])) > _MAX_PIXELS:
        height, width = (max(1, size * _MAX_PIXELS // side) for size in images.shape[-2:])
        scaled = torch.nn.functional.interpolate(torch.nan_to_num(scaled, 0.0, 0.0, 0.0), (height, width), mode="area")
    scaled = scaled if images.dtype == torch.uint8 else _scaled(scaled)
    return (scaled[:, 0] if images.shape[1] == 1 else scaled.movedim(1, -1)).numpy()


def _lines(signals: Tensor) -> Any:
    """(N, C, T) -> (N, T, C) in 0..1; of long ones the least and the greatest value of each stretch. Bytes: 0..255."""
    scaled = signals.detach().cpu()
    scaled = scaled / 255 if signals.dtype == torch.uint8 else _scaled(scaled)
    if scaled.shape[2] > 2 * _MAX_BINS:
        pool = torch.nn.functional.adaptive_max_pool1d
        scaled = torch.stack([-pool(-scaled, _MAX_BINS), pool(scaled, _MAX_BINS)], -1).flatten(2)
    return scaled.movedim(1, -1).numpy()


def _scaled(images: Tensor, reference: Tensor | None = None) -> Tensor:
    """Images (N, C, ...) scaled to 0..1, each by its own minimum and maximum, or all by those of `reference`."""
    images = torch.nan_to_num(images.float(), 0.0, 0.0, 0.0)
    flat = images.flatten(1) if reference is None else torch.nan_to_num(reference.float(), 0.0, 0.0, 0.0).view(1, -1)
    low, high = (one.view(-1, *[1] * (images.dim() - 1)) for one in (flat.amin(1), flat.amax(1)))
    return ((images - low) / torch.where(high > low, high - low, 1.0)).clamp(0, 1)


def scaled_like(images: Tensor, reference: Tensor) -> Tensor:
    """Images or signals (N, C, ...) as bytes, scaled by the minimum and maximum of all of `reference`."""
    return (255 * _scaled(images, reference)).byte()


def confusion_matrix(counts: Tensor, names: Sequence[str], title: str) -> Any:
    """A confusion matrix (C, C): rows are true classes; colors are shares of a row, numbers are items."""
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    num_classes = len(counts)
    side = min(max(3.2, 0.42 * num_classes + 1.6), 11.0)
    figure = new_figure(side + 0.6, side + 0.2)
    axes = figure.subplots()
    # The square root makes single mistakes visible.
    heatmap = axes.imshow(shares.numpy() ** 0.5, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(heatmap, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 0.1**0.5, 0.5**0.5, 1])
    bar.ax.set_yticklabels(["0", "10%", "50%", "100%"])
    bar.outline.set_visible(False)
    if num_classes <= 30:
        rotation = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(num_classes), names, rotation=rotation, parse_math=False)
        axes.set_yticks(range(num_classes), names, parse_math=False)
        size = 8 if num_classes <= 20 else 6
        for true, predicted in counts.nonzero().tolist():
            color = "white" if shares[true, predicted] > 0.4 else "black"
            number = int(counts[true, predicted])
            text = axes.text(predicted, true, number if number < 10_000 else f"{number / 1000:.0f}k", color=color)
            text.set(ha="center", va="center", fontsize=size, in_layout=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, parse_math=False)
    return figure


def scatter(pairs: Tensor, title: str) -> Any:
    """Predicted over true values, from pairs (N, 2) of true and predicted, with the line of equality."""
    true, predicted = pairs.numpy().T
    figure = new_figure(4.4, 4.4)
    axes = figure.subplots()
    axes.plot(true, predicted, ".", color="#0072b2", markersize=4, alpha=min(0.8, 0.15 + 200 / len(pairs)))
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, "--", color="#555555", linewidth=1)
    axes.set(xlabel="true", ylabel="predicted")
    axes.grid(alpha=0.25)
    axes.set_title(title, parse_math=False)
    return figure
