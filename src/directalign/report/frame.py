"""Where things stand in a chart: the drawing area, its axes and round ticks."""

from __future__ import annotations

from .writing import Number, told_apart, written
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


NARROW, WIDE = (380, 240), (760, 400)
TOP, BOTTOM, LEFT = 20, 42, 52
LETTER = 7.5
"""Mean width of a letter at the charts' font size, in SVG units."""


@dataclass(frozen=True)
class Axes:
    """Titles, fixed ends where wanted, and how numbers are written."""

    x: str
    y: str
    percent: bool = False
    percent_x: bool = False
    y_low: Number | None = None
    y_high: Number | None = None
    x_low: Number | None = None
    x_high: Number | None = None


@dataclass(frozen=True)
class Frame:
    """The drawing area in SVG units and what it spans in data."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    right: float
    base: float

    @classmethod
    def around(
        cls,
        xs: Sequence[Number],
        ys: Sequence[Number],
        axes: Axes,
        size: tuple[int, int],
        letters: int,
    ) -> Frame:
        """A frame for these numbers that leaves room for labels of so many `letters` on the right."""
        x_low, x_high = _span(xs, axes.x_low, axes.x_high, 0.0)
        y_low, y_high = _span(ys, axes.y_low, axes.y_high, 0.06)
        return cls(
            x_low, x_high, y_low, y_high, size[0] - 14 - LETTER * letters, float(size[1] - BOTTOM)
        )

    def x(self, value: Number) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - LEFT)

    def y(self, value: Number) -> float:
        return self.base - (value - self.y_low) / (self.y_high - self.y_low) * (self.base - TOP)

    def drawn(self, axes: Axes) -> list[str]:
        """Rules, ticks, and the name of the x axis; the chart's title names the y axis."""
        parts = []
        rows = ticks(self.y_low, self.y_high)
        for value, text in zip(rows, told_apart(rows, axes.percent), strict=True):
            y = self.y(value)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{self.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            parts.append(
                f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
            )
        for value in ticks(self.x_low, self.x_high):
            parts.append(
                f'<text class="tick" x="{self.x(value):.1f}" y="{self.base + 18}" text-anchor="middle">{written(value, axes.percent_x)}</text>'
            )
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{self.right:.1f}" y1="{self.base}" y2="{self.base}"/>'
        )
        parts.append(
            f'<text class="name" x="{(LEFT + self.right) / 2:.1f}" y="{self.base + 37}" text-anchor="middle">{escape(axes.x)}</text>'
        )
        return parts


def ticks(low: Number, high: Number, about: int = 4) -> list[float]:
    """Round numbers between low and high, some `about` of them."""
    raw = (high - low) / about
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [
        float(round(index * step, 12)) for index in range(first, math.floor(high / step + 1e-9) + 1)
    ]


def _span(
    values: Sequence[Number], low: Number | None, high: Number | None, margin: float
) -> tuple[float, float]:
    """Ends of an axis: the data with a margin, or what is asked for where the data stays inside it; never empty."""
    least, most = min(values), max(values)
    pad = margin * (most - least)
    start = least - pad if low is None else min(low, least)
    end = most + pad if high is None else max(high, most)
    return (
        (float(start), float(end))
        if end - start > 1e-12 * max(1.0, abs(end))
        else (start - 0.5, end + 0.5)
    )
