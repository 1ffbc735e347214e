"""Intervals as whiskers: one on a line from 0 to 1, or one row for each model on a common axis."""

from __future__ import annotations

from .charts import Point
from .frame import ticks
from .writing import Number, told_apart
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from markupsafe import Markup


WIDTH, EDGE = 240, 6


def interval_bar(
    values: Sequence[tuple[str, Point, Number]],
    title: str,
    low: Number = 0.0,
    high: Number = 1.0,
    middle: Number | None = None,
) -> Markup:
    """Whiskers with a dot on one line from `low` to `high`: (class, (low end, high end), value) each; a tick at `middle`."""
    parts = [f'<line class="track" x1="{EDGE}" x2="{WIDTH - EDGE}" y1="11" y2="11"/>']
    if middle is not None:
        parts.append(
            f'<line class="middle" x1="{_x(middle, low, high):.1f}" x2="{_x(middle, low, high):.1f}" y1="4" y2="18"/>'
        )
    for style, (start, end), value in values:
        left, right, at = (_x(number, low, high) for number in (start, end, value))
        parts.append(
            f'<line class="whisker {style}" x1="{left:.1f}" x2="{right:.1f}" y1="11" y2="11"/>'
        )
        parts.append(f'<circle class="dot {style}" cx="{at:.1f}" cy="11" r="5"/>')
    said = escape(title)
    return Markup(
        f'<svg class="bar" viewBox="0 0 {WIDTH} 22" role="img" aria-label="{said}"><title>{said}</title>{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Scale:
    """A common axis for several rows."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[Number], percent: bool = False) -> Scale:
        """All values inside; rates always from 0 to 1."""
        if percent and all(0 <= value <= 1 for value in values):
            return cls(0.0, 1.0)
        low, high = float(min(values)), float(max(values))
        pad = 0.08 * (high - low) or max(abs(high), 1.0) * 0.05
        return cls(low - pad, high + pad)

    def ticks(self, percent: bool) -> list[tuple[float, str]]:
        """(place in percent of the row, number) of a few round numbers."""
        found = ticks(self.low, self.high, 2)
        return [
            (100 * _x(value, self.low, self.high) / WIDTH, text)
            for value, text in zip(found, told_apart(found, percent), strict=True)
        ]

    def bar(self, style: str, ends: Point, value: Number, title: str) -> Markup:
        """One row."""
        return interval_bar([(style, ends, value)], title, self.low, self.high)


def _x(value: Number, low: Number, high: Number) -> float:
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    return EDGE + (WIDTH - 2 * EDGE) * share
