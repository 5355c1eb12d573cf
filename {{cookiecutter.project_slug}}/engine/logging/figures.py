"""Matplotlib figures: new ones, their pixels, PNG files. No torch here."""

import logging
import re
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpointing.atomic_write import atomic_file

# Fonts for Chinese characters, and the files that they lie in.
_CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Microsoft YaHei", "SimHei")
_CJK_FILES = re.compile("NotoSansCJK-Regular|wqy-|msyh|simhei", re.IGNORECASE)


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches. Not by pyplot, whose figures stay in memory until they are closed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure


@cache
def _fonts() -> list[str]:
    """The font of figures, and those for Chinese characters that are installed."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # of a weight that a font does not have
    if not any(font.name in _CJK for font in fontManager.ttflist):  # a list that may be older than an installed font
        for path in filter(_CJK_FILES.search, findSystemFonts()):
            fontManager.addfont(path)
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _CJK if name in installed)]


@cache
def _say_no_font() -> None:
    line = "pictures: no installed font has all characters of the names in them; for Chinese, Debian has fonts-noto-cjk"
    print(line, file=sys.stderr, flush=True)


def render(draw: Callable[[], Any]) -> Any:
    """The pixels (H, W, 3), bytes, of the figure that `draw` makes, all in one style; None where that makes None."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    spines = {"axes.spines.top": False, "axes.spines.right": False}
    style: Any = {"font.family": _fonts(), "font.size": 9, "axes.titlesize": 10, "axes.formatter.useoffset": False}
    with matplotlib.rc_context(style | spines), warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # very long class names
        warnings.filterwarnings("always", "Glyph .* missing from")
        if (figure := draw()) is None:
            return None
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    for one in caught:
        if re.match("Glyph .* missing from", str(one.message)):
            _say_no_font()
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return np.asarray(canvas.buffer_rgba())[..., :3]


def write_png(path: Path, pixels: Any) -> None:
    """Writes pixels (H, W, 3). Raises WriteError."""
    from matplotlib.image import imsave

    with atomic_file(path) as part:
        imsave(part, pixels, format="png")
