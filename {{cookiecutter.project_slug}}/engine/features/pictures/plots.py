"""The drawings of engine/pictures.py, each from plain tensors to a matplotlib Figure; goes with that file."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SIDE = 160  # pixels of an image that are drawn, at most
_CJK = ("Noto Sans CJK SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Microsoft YaHei", "SimHei", "PingFang SC")


def figure(width: float, height: float) -> Any:
    """An empty figure, in inches. Nothing of pyplot: what it makes stays open until it is closed by hand."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=110, layout="constrained")
    made.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return made


def style() -> Any:
    """Settings for `matplotlib.rc_context`, with a font that has Chinese signs where this machine has one."""
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in _CJK if name in there)]
    spines = {"axes.spines.top": False, "axes.spines.right": False}
    return {"font.family": fonts, "font.size": 9, "axes.titlesize": 10, "axes.formatter.useoffset": False, **spines}


def images(rows: Sequence[Tensor], labels: Sequence[str], title: str, sides: Sequence[str] = ()) -> Any:
    """Images in a grid, with a label above each.

    rows: of images (N, 1|3, H, W), whatever their range: each is drawn from its least to its greatest value.
    labels: for all images, row by row; or none. sides: a word left of each row.
    """
    height, width = rows[0].shape[-2:]
    lines = 1 + max((label.count("\n") for label in labels), default=-1)
    ratio = min(max(height / width, 0.2), 5.0)
    across = max(map(len, rows))
    gap = 0.06 + 0.16 * lines
    inches = min(1.05, 10 / across)
    drawn = figure(max(across * inches, 4.5) + 0.3, len(rows) * (ratio + gap) * inches + 0.4)
    axes = drawn.subplots()
    for down, row in enumerate(rows):
        top = down * (ratio + gap) + gap
        for place, image in enumerate(_pixels(row)):
            here = (place + 0.03, place + 0.97, top + 0.97 * ratio, top + 0.03 * ratio)
            axes.imshow(image, extent=here, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if labels:
                at = sum(map(len, rows[:down])) + place
                where = {"ha": "center", "va": "bottom", "parse_math": False}
                axes.text(place + 0.5, top, labels[at], fontsize=8, linespacing=1.1, **where)
        if sides:
            axes.text(-0.05, top + ratio / 2, sides[down], ha="right", va="center")
    axes.set(xlim=(0, across), ylim=(len(rows) * (ratio + gap), 0), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, parse_math=False)
    return drawn


def masks(inputs: Tensor, rows: dict[str, Tensor], names: Sequence[str], title: str) -> Any:
    """Images (N, 1|3, H, W), and below them, on the same in grey, the classes of their pixels (N, H, W) in colour."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    palette = torch.tensor(colormaps["tab10" if len(names) <= 10 else "tab20"].colors)  # type: ignore[attr-defined]
    grey = _scaled(inputs).mean(1, keepdim=True)
    drawn_rows = [inputs]
    for numbers in rows.values():
        colour = palette[numbers.clamp_min(0) % len(palette)].movedim(-1, 1)  # (N, 3, H, W)
        known = (numbers >= 0)[:, None]
        drawn_rows.append((255 * (0.4 * grey + 0.6 * colour.where(known, grey))).byte())
    drawn = images(drawn_rows, [], title, ["input", *rows])
    there = torch.cat([numbers.unique() for numbers in rows.values()]).unique().tolist()
    patches = [Patch(color=tuple(palette[one % len(palette)].tolist()), label=names[one]) for one in there if one >= 0]
    drawn.legend(handles=patches[:20], loc="outside lower center", ncols=min(len(patches), 5), frameon=False)
    return drawn


def _pixels(images: Tensor) -> Any:
    """(N, 1|3, H, W) -> (N, H, W) or (N, H, W, 3), each in 0..1, no larger than is drawn. Bytes are 0..255."""
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images.detach().float().cpu()
    if (side := max(images.shape[-2:])) > _SIDE:
        height, width = (max(1, one * _SIDE // side) for one in images.shape[-2:])
        scaled = torch.nn.functional.interpolate(torch.nan_to_num(scaled, 0.0, 0.0, 0.0), (height, width), mode="area")
    scaled = scaled if images.dtype == torch.uint8 else _scaled(scaled)
    return (scaled[:, 0] if images.shape[1] == 1 else scaled.movedim(1, -1)).numpy()


def _scaled(images: Tensor, like: Tensor | None = None) -> Tensor:
    """Images (N, 1|3, H, W), each from its least value, 0, to its greatest, 1; or from the least of all of `like`."""
    images = torch.nan_to_num(images.float(), 0.0, 0.0, 0.0)
    flat = images.flatten(1) if like is None else torch.nan_to_num(like.float(), 0.0, 0.0, 0.0).view(1, -1)
    least, most = (flat.amin(1).view(-1, 1, 1, 1), flat.amax(1).view(-1, 1, 1, 1))
    return ((images - least) / torch.where(most > least, most - least, 1.0)).clamp(0, 1)


def of_one_range(rows: dict[str, Tensor]) -> list[str]:
    """Which rows to draw in the range of "target": itself, the output, and an input that is of its kind."""
    target, given = rows["target"].float(), rows.get("input")
    if given is None or given.shape[1] != target.shape[1]:
        return ["output", "target"]
    near = (given.float().mean() - target.mean()).abs() < target.std() and given.float().std() < 2 * target.std()
    return ["input", "output", "target"] if near else ["output", "target"]


def alike(images: Tensor, like: Tensor) -> Tensor:
    """Images (N, 1|3, H, W) as bytes, from the least value of all of `like`, the images that they should be."""
    return (255 * _scaled(images, like)).byte()


def confusion(counts: Tensor, names: Sequence[str], title: str) -> Any:
    """A confusion matrix (C, C): rows are the true classes and sum to 1 in colour; the numbers are items."""
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    many = len(counts)
    side = min(max(3.2, 0.42 * many + 1.6), 11.0)
    drawn = figure(side + 0.6, side + 0.2)
    axes = drawn.subplots()
    shown = axes.imshow(shares.numpy() ** 0.5, cmap="Blues", vmin=0, vmax=1)  # the root lets single mistakes be seen
    bar = drawn.colorbar(shown, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 0.1**0.5, 0.5**0.5, 1])
    bar.ax.set_yticklabels(["0", "10%", "50%", "100%"])
    bar.outline.set_visible(False)
    if many <= 30:
        turn = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(many), names, rotation=turn, parse_math=False)
        axes.set_yticks(range(many), names, parse_math=False)
        size = 8 if many <= 20 else 6
        for true, guess in counts.nonzero().tolist():
            colour = "white" if shares[true, guess] > 0.4 else "black"
            number = int(counts[true, guess])
            axes.text(
                guess, true, _short(number), ha="center", va="center", color=colour, fontsize=size, in_layout=False
            )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, parse_math=False)
    return drawn


def _short(number: int) -> str:
    return str(number) if number < 10_000 else f"{number / 1000:.0f}k"


def predicted(pairs: Tensor, title: str) -> Any:
    """Predicted values over true ones, from pairs (N, 2) of true and predicted, with the line where they agree."""
    true, said = pairs.numpy().T
    drawn = figure(4.4, 4.4)
    axes = drawn.subplots()
    axes.plot(true, said, ".", color="#0072b2", markersize=4, alpha=min(0.8, 0.15 + 200 / len(pairs)))
    ends = [min(true.min(), said.min()), max(true.max(), said.max())]
    axes.plot(ends, ends, "--", color="#555555", linewidth=1)
    axes.set(xlabel="true", ylabel="predicted")
    axes.grid(alpha=0.25)
    axes.set_title(title, parse_math=False)
    return drawn
