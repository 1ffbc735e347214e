"""The sheet that figures are drawn on: one style, boxes measured in inches, readable axes, no display needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image


INK, SOFT, LINE, PAPER = "#1b1d22", "#5d636e", "#e4e4df", "#ffffff"
WIDTH, DPI = 10.4, 120  # inches, pixels per inch
LABEL = 10  # points
TITLE_LETTERS = 85  # of a title in full size; a longer one is set smaller
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": LABEL,
    "text.color": INK,
    "axes.facecolor": PAPER,
    "axes.edgecolor": "#b9bcc2",
    "axes.labelcolor": SOFT,
    "axes.labelsize": LABEL,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
"""For `matplotlib.rc_context`: light, thin, and no text under 9 points."""


class Sheet:
    """A figure measured in inches from its lower left corner, its title and a note above `height` inches of room."""

    def __init__(self, title: str, note: str, height: int | float) -> None:
        self.height = height + (0.8 if note else 0.55)
        figure = Figure((WIDTH, self.height), dpi=DPI, facecolor=PAPER)
        figure.text(0.25 / WIDTH, 1 - 0.2 / self.height, title, size=min(14, 14 * TITLE_LETTERS / max(1, len(title))), weight="bold", va="top")
        figure.text(0.25 / WIDTH, 1 - 0.5 / self.height, note, size=LABEL, color=SOFT, va="top")
        self._figure, self._canvas = figure, FigureCanvasAgg(figure)

    def box(self, left: float, bottom: float, wide: float, high: float) -> Axes:
        """A pair of axes at these inches."""
        return self._figure.add_axes((left / WIDTH, bottom / self.height, wide / WIDTH, high / self.height))

    def save(self, file: Path) -> Path:
        """Write a PNG without anything in it but its pixels; its folder is made."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._canvas.draw()
        pixels = Image.fromarray(np.asarray(self._canvas.buffer_rgba())[..., :3])
        pixels.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(file, optimize=True)  # colours stay, a third of the size
        return file


def scale(axes: Axes, which: Literal["x", "y"], log: bool, percent: bool) -> None:
    """Few round ticks on one axis, as numbers that are read at once: 40 %, 3 k, 0.05."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if log:
        axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if _decades(axis) < 2.5 else (1.0,)))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, percent)))


def _decades(axis: Axis) -> float:
    low, high = axis.get_view_interval()
    return math.log10(high / low)


def tick(value: int | float, percent: bool) -> str:
    """A number under an axis."""
    if percent:
        return f"{100 * value:.0f} %"
    short = next((f"{value / size:g} {letter}" for size, letter in ((1e6, "M"), (1e3, "k")) if abs(value) >= size), f"{value:.6g}")
    return short.replace("-", "−")
