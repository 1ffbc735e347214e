"""Small line charts as inline SVG: labelled axes, labels at the lines themselves, the numbers as tooltips.

Colours come from the page's CSS through classes (`s0`, `s1`, ...), so a chart follows light and dark by itself.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

NARROW, WIDE = (380, 240), (760, 400)
TOP, BOTTOM, LEFT = 16, 40, 50
LETTER = 6.8
"""Mean width of a letter at the charts' font size, in SVG units."""
LABEL_LETTERS, LABEL_LINE = 18, 14
"""A label is broken into lines of so many letters, so far apart."""

MOST_DIGITS = 6
"""Digits of a number on an axis, for which there is room left of it."""

Number = float | int
Point = tuple[Number, Number]


@dataclass(frozen=True)
class Series:
    """One line: its points, an optional band (x, low, high), and the class that colours it."""

    label: str
    points: Sequence[Point]
    style: str = "s0"
    band: Sequence[tuple[Number, Number, Number]] = ()
    notes: Sequence[str] = ()
    """One more line per point for its tooltip."""


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


def line_chart(series: Sequence[Series], axes: Axes, title: str, dots: bool = True, size: tuple[int, int] = NARROW) -> Markup:
    """A chart with one line per series, `size` = (width, height) in SVG units; empty Markup where there is nothing to draw."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return Markup("")
    frame = _Frame.around(drawn, axes, size)
    parts = [*_grid(frame, axes), *(part for one in drawn for part in _series(frame, one, axes, dots)), *_labels(frame, drawn)]
    head = f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    return Markup(head + "".join(parts) + "</svg>")


def ticks(low: Number, high: Number, about: int = 4) -> list[float]:
    """Round numbers between low and high, some `about` of them."""
    raw = (high - low) / about
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(round(index * step, 12)) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def written(value: Number, percent: bool = False, digits: int = 3) -> str:
    """A number as a person would write it: three significant digits or as many as asked for, a true minus sign."""
    text = f"{100 * value:.{digits}g} %" if percent else f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−") if "e" not in text else text


def told_apart(values: Sequence[Number], percent: bool = False) -> list[str]:
    """Numbers as `written`, with more digits where three would make two of them look alike."""
    texts = [written(value, percent) for value in values]
    for digits in range(4, MOST_DIGITS + 1):
        if len(set(texts)) == len(values):
            break
        texts = [written(value, percent, digits) for value in values]
    return texts


# --- geometry ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    right: float
    base: float

    @classmethod
    def around(cls, series: Sequence[Series], axes: Axes, size: tuple[int, int]) -> _Frame:
        xs = [x for one in series for x, _ in one.points]
        ys = [y for one in series for _, y in one.points] + [end for one in series for _, *ends in one.band for end in ends]
        x_low, x_high = _span(xs, axes.x_low, axes.x_high, 0.0)
        y_low, y_high = _span(ys, axes.y_low, axes.y_high, 0.06)
        longest = max(len(line) for one in series for line in broken(one.label))
        return cls(x_low, x_high, y_low, y_high, size[0] - 16 - LETTER * longest, float(size[1] - BOTTOM))

    def x(self, value: Number) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - LEFT)

    def y(self, value: Number) -> float:
        return self.base - (value - self.y_low) / (self.y_high - self.y_low) * (self.base - TOP)


def _span(values: Sequence[Number], low: Number | None, high: Number | None, margin: float) -> tuple[float, float]:
    """Ends of an axis: the data with a margin, or what is asked for where the data stays inside it; never empty."""
    least, most = min(values), max(values)
    pad = margin * (most - least)
    start = least - pad if low is None else min(low, least)
    end = most + pad if high is None else max(high, most)
    return (float(start), float(end)) if end - start > 1e-12 * max(1.0, abs(end)) else (start - 0.5, end + 0.5)


# --- drawing ----------------------------------------------------------------------------------------------------------


def _grid(frame: _Frame, axes: Axes) -> list[str]:
    base, parts = frame.base, []
    rows = ticks(frame.y_low, frame.y_high)
    for value, text in zip(rows, told_apart(rows, axes.percent), strict=True):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    for value in ticks(frame.x_low, frame.x_high):
        parts.append(f'<text class="tick" x="{frame.x(value):.1f}" y="{base + 17}" text-anchor="middle">{written(value, axes.percent_x)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{frame.right:.1f}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text class="name" x="{(LEFT + frame.right) / 2:.1f}" y="{base + 35}" text-anchor="middle">{escape(axes.x)}</text>')
    return parts


def _series(frame: _Frame, one: Series, axes: Axes, dots: bool) -> list[str]:
    parts = []
    if len(one.band) > 1:
        upper = [f"{frame.x(x):.1f},{frame.y(high):.1f}" for x, _, high in one.band]
        lower = [f"{frame.x(x):.1f},{frame.y(low):.1f}" for x, low, _ in reversed(one.band)]
        parts.append(f'<polygon class="band {one.style}" points="{" ".join(upper + lower)}"/>')
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in one.points)
    parts.append(f'<polyline class="line {one.style}" points="{path}"/>')
    for place, point in enumerate(one.points):
        parts.append(_dot(frame, one, axes, place, point, dots))
    return parts


def _dot(frame: _Frame, one: Series, axes: Axes, place: int, point: Point, shown: bool) -> str:
    """A point with its tooltip; an invisible one where there are too many to show."""
    x, y = point
    tip = f"{axes.x} {written(x, axes.percent_x)}, {axes.y} {written(y, axes.percent)}"
    words = [part for part in (one.label, tip, *one.notes[place : place + 1]) if part]
    kind, radius = ("dot", 3.2) if shown else ("touch", 6)
    circle = f'<circle class="{kind} {one.style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="{radius}">'
    return f"{circle}<title>{escape(chr(10).join(words))}</title></circle>"


def _labels(frame: _Frame, series: Sequence[Series]) -> list[str]:
    """Names beside the last points of the lines, moved apart where they would overlap."""
    named = sorted((one for one in series if one.label), key=lambda one: frame.y(one.points[-1][1]))
    lines = [broken(one.label) for one in named]
    places = apart([frame.y(one.points[-1][1]) + 4 for one in named], [LABEL_LINE * len(each) + 2 for each in lines], TOP + 4, frame.base + LABEL_LINE)
    parts = []
    for one, each, place in zip(named, lines, places, strict=True):
        x = frame.x(one.points[-1][0]) + 9
        spans = "".join(f'<tspan x="{x:.1f}" dy="{LABEL_LINE if row else 0}">{escape(line)}</tspan>' for row, line in enumerate(each))
        parts.append(f'<text class="label {one.style}" x="{x:.1f}" y="{place:.1f}">{spans}</text>')
    return parts


def broken(label: str) -> list[str]:
    """A label in lines of at most `LABEL_LETTERS`, three of them; what does not fit is cut."""
    return textwrap.wrap(label, LABEL_LETTERS, max_lines=3, placeholder=" …") or [""]


def apart(wanted: Sequence[Number], sizes: Sequence[Number], low: Number, high: Number) -> list[Number]:
    """Rising positions for things of the given sizes: none over another, kept inside [low, high] where they fit."""
    places: list[Number] = []
    for index, value in enumerate(wanted):
        places.append(max(value, places[-1] + sizes[index - 1] if places else low))
    room = high
    for index in reversed(range(len(places))):
        room -= sizes[index]
        places[index] = min(places[index], room)
    return places


def interval_bar(values: Sequence[tuple[str, Point, Number]], title: str) -> Markup:
    """Rates on a line from 0 to 1: (class, (low, high), value) each, as a whisker with a dot."""

    def x(value: Number) -> float:
        return 6 + 228 * min(1.0, max(0.0, value))

    parts = ['<line class="track" x1="6" x2="234" y1="11" y2="11"/>']
    for style, (low, high), value in values:
        parts.append(f'<line class="whisker {style}" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="11" y2="11"/>')
        parts.append(f'<circle class="dot {style}" cx="{x(value):.1f}" cy="11" r="5"/>')
    return Markup(f'<svg class="bar" viewBox="0 0 240 22" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>')
