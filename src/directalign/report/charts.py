"""Inline SVG charts: line charts with bands, scatter charts with error bars, interval rows.

Points have tooltips; labels stand at the lines and avoid what is drawn. Colours come from the
page's CSS classes (`s0`, `s1`, ...), so that charts follow the light and the dark scheme.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from ..metrics import Metric
from .format import Number, distinct, written
from .page import PAGES

BASE = "s1"
"""CSS class of the base model."""
STYLES = ("s0", "s2", "s3", "s4", "s5", "s6", "s7")
"""CSS classes of lines and of the other models."""
NARROW, HALF, WIDE = (380, 240), (520, 330), (760, 400)
"""Sizes of charts (width, height) in SVG units."""
SCATTER_SIZES = {"wide": WIDE, "half": HALF, "narrow": NARROW}
MAX_POINTS = 160
"""Longer lines are drawn through means of neighbouring points."""
MAX_DOTS = 40
"""Lines with more points have invisible dots."""
TOP, BOTTOM, LEFT = 20, 42, 52
"""Margins of the plot area."""
LETTER_WIDTH = 7.5
LABEL_LETTERS, LABEL_LINE = 18, 15
"""Longest line of a label in letters, and the line height."""
LABEL_SHIFT = 16
"""How far a label may move up or down to avoid a line."""
INK_STEP = 5
"""Distance between the places on a line that labels avoid."""
BAR_WIDTH, BAR_EDGE = 240, 6
LOW_RATE = 0.8
"""Lower end of the axis of a rate that should stay high, unless the data is lower."""

Point = tuple[Number, Number]
Ends = tuple[Number, Number, Number, Number]


@dataclass(frozen=True)
class Axes:
    """Titles, fixed ends where wanted, and whether numbers are percentages."""

    x: str
    y: str
    percent: bool = False
    percent_x: bool = False
    y_low: Number | None = None
    y_high: Number | None = None
    x_low: Number | None = None
    x_high: Number | None = None

    def tip(self, one: Series, place: int) -> str:
        """The tooltip of a point."""
        x, y = one.points[place]
        numbers = f"{self.x} {written(x, self.percent_x)}, {self.y} {written(y, self.percent)}"
        return "\n".join(filter(None, (one.label, numbers, *one.notes[place : place + 1])))


@dataclass(frozen=True)
class Series:
    """A line: points, an optional band of (x, low, high), and its CSS class.

    `notes` add a line to the tooltip of each point; `errors` are intervals of a point
    (x low, x high, y low, y high), drawn as a cross.
    """

    label: str
    points: Sequence[Point]
    style: str = "s0"
    band: Sequence[tuple[Number, Number, Number]] = ()
    notes: Sequence[str] = ()
    errors: Sequence[Ends | None] = ()

    @property
    def band_edge(self) -> list[Point]:
        """The upper end of the band, then the lower one backwards."""
        upper = [(x, high) for x, _, high in self.band]
        return upper + [(x, low) for x, low, _ in reversed(self.band)]


@dataclass(frozen=True)
class Rule:
    """A named straight line: vertical at `at`, or horizontal."""

    at: Number
    text: str
    style: str
    horizontal: bool = False


@dataclass(frozen=True)
class Marker:
    """A highlighted point: a cross for "stop", a name only for "start" and "end", else a ring."""

    point: Point
    text: str
    kind: str
    style: str = "s0"


@dataclass(frozen=True)
class Figure:
    """A chart with its title and caption."""

    title: str
    chart: Markup
    caption: str


@dataclass(frozen=True)
class Frame:
    """The plot area in SVG units and the range of data that it shows."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    right: float
    base: float
    left: float = LEFT
    top: float = TOP

    def x(self, value: Number) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return self.left + share * (self.right - self.left)

    def y(self, value: Number) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.base - share * (self.base - self.top)

    def at(self, point: Point) -> tuple[float, float]:
        """A point in SVG units."""
        return self.x(point[0]), self.y(point[1])

    def path(self, points: Iterable[Point]) -> str:
        """A line through points, for an attribute of SVG."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.at, points))

    def crosses(self, one: Series) -> Iterator[tuple[Point, Point]]:
        """Start and end of each error bar in SVG units."""
        for (x, y), ends in zip(one.points, one.errors, strict=False):
            if ends is not None:
                left, right, lower, upper = ends
                yield self.at((left, y)), self.at((right, y))
                yield self.at((x, lower)), self.at((x, upper))

    def holds(self, rule: Rule) -> bool:
        """Whether the rule is inside of the plot area."""
        if rule.horizontal:
            return self.y_low <= rule.at <= self.y_high
        return self.x_low <= rule.at <= self.x_high


def ticks(low: Number, high: Number, about: int = 4) -> list[float]:
    """About as many round numbers between low and high as asked for."""
    raw = (high - low) / about
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(round(index * step, 12)) for index in range(first, last + 1)]


def _range(
    values: Sequence[Number], low: Number | None, high: Number | None, margin: float
) -> tuple[float, float]:
    """Ends of an axis: the data with a margin, or the given ends if the data is inside."""
    least, most = min(values), max(values)
    pad = margin * (most - least)
    start = least - pad if low is None else min(low, least)
    end = most + pad if high is None else max(high, most)
    if end - start > 1e-12 * max(1.0, abs(end)):
        return float(start), float(end)
    return start - 0.5, end + 0.5


def line_chart(
    series: Sequence[Series],
    axes: Axes,
    title: str,
    dots: bool | None = None,
    size: tuple[int, int] = NARROW,
    rules: Sequence[Rule] = (),
    markers: Sequence[Marker] = (),
) -> Markup:
    """A chart with one line per series; empty if there are no points.

    Args:
        dots: whether points are visible; None for lines of at most `MAX_DOTS` points.
        size: width and height in SVG units.
    """
    drawn = [_thinned(one) for one in series if one.points]
    if not drawn:
        return Markup("")
    names = [one.label for one in drawn] + [marker.text for marker in markers]
    names += [rule.text for rule in rules if rule.horizontal]
    letters = max(len(line) for name in names for line in _wrapped(name))
    frame = _frame(drawn, axes, size, letters)
    rules = [rule for rule in rules if frame.holds(rule)]
    if dots is None:
        dots = max(len(one.points) for one in drawn) <= MAX_DOTS
    values = ticks(frame.y_low, frame.y_high)
    rows = list(zip(values, distinct(values, axes.percent), strict=True))
    places = ticks(frame.x_low, frame.x_high)
    return _svg(
        "chart",
        title=title,
        size=size,
        frame=frame,
        axes=axes,
        rows=rows,
        columns=[(value, written(value, axes.percent_x)) for value in places],
        rules=_named_rules(frame, rules),
        limits=[rule for rule in rules if rule.horizontal],
        series=drawn,
        dots=dots,
        markers=markers,
        labels=_apart(_labels(frame, drawn, rules, markers), frame),
        line_height=LABEL_LINE,
    )


def _svg(template: str, **context: Any) -> Markup:
    return Markup(PAGES.get_template(f"{template}.svg.j2").render(**context))


def _frame(series: Sequence[Series], axes: Axes, size: tuple[int, int], letters: int) -> Frame:
    """A frame for all points, with room for labels of `letters` letters on the right."""
    crosses = [ends for one in series for ends in one.errors if ends is not None]
    points = [point for one in series for point in one.points]
    xs = [x for x, _ in points] + [end for ends in crosses for end in ends[:2]]
    ys = [y for _, y in points] + [end for ends in crosses for end in ends[2:]]
    ys += [end for one in series for _, *ends in one.band for end in ends]
    return Frame(
        *_range(xs, axes.x_low, axes.x_high, 0.0),
        *_range(ys, axes.y_low, axes.y_high, 0.06),
        right=size[0] - 14 - LETTER_WIDTH * letters,
        base=float(size[1] - BOTTOM),
    )


def _thinned(one: Series) -> Series:
    """Replace neighbouring points of a long line by their means."""
    if len(one.points) <= MAX_POINTS:
        return one
    width = -(-len(one.points) // MAX_POINTS)
    groups = [one.points[start : start + width] for start in range(0, len(one.points), width)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    notes = [f"mean of {len(group)} points" for group in groups]
    return replace(one, points=means, notes=notes, errors=())


def _named_rules(frame: Frame, rules: Sequence[Rule]) -> Iterator[tuple[Rule, float, float, str]]:
    """Vertical rules with their place, that of their names and its anchor; no name over another."""
    taken = float("-inf")
    for rule in rules:
        if not rule.horizontal:
            x, width = frame.x(rule.at), LETTER_WIDTH * len(rule.text)
            before = x - width - 8 > max(taken, frame.left - 20)
            shift, anchor = (-4, "end") if before else (4, "start")
            yield rule, x, x + shift, anchor
            taken = x if before else x + width


def _ink(frame: Frame, series: Sequence[Series]) -> list[Point]:
    """Points on the lines, error bars and the x axis, `INK_STEP` apart, in SVG units."""
    lines: list[tuple[Point, Point]] = [((LEFT, frame.base), (frame.right, frame.base))]
    for one in series:
        lines += pairwise(map(frame.at, one.points))
        lines += frame.crosses(one)
    found = []
    for (x, y), (to_x, to_y) in lines:
        pieces = max(1, math.ceil(math.dist((x, y), (to_x, to_y)) / INK_STEP))
        shares = [piece / pieces for piece in range(pieces + 1)]
        found += [(x + share * (to_x - x), y + share * (to_y - y)) for share in shares]
    return found


@dataclass(frozen=True)
class Label:
    """A name in SVG units: its lines start at `x`, or end there with the anchor "end"."""

    lines: list[str]
    x: Number
    y: Number
    style: str
    anchor: str = "start"

    @property
    def width(self) -> Number:
        return LETTER_WIDTH * max(map(len, self.lines))

    @property
    def height(self) -> Number:
        return LABEL_LINE * len(self.lines) + 2

    @property
    def left(self) -> Number:
        return self.x if self.anchor == "start" else self.x - self.width


def _wrapped(label: str, letters: int = LABEL_LETTERS) -> list[str]:
    """At most three lines; the rest is cut."""
    return textwrap.wrap(label, letters, max_lines=3, placeholder=" …") or [""]


def _labels(
    frame: Frame, series: Sequence[Series], rules: Sequence[Rule], markers: Sequence[Marker]
) -> list[Label]:
    """Names of lines, markers and limits, each where it covers least of the chart."""
    ink = _ink(frame, series)
    named = [(one.label, frame.at(one.points[-1]), 9, one.style) for one in series]
    named += [(one.text, frame.at(one.point), 13, one.style) for one in markers]
    limits = [(one, (frame.right, frame.y(one.at))) for one in rules if one.horizontal]
    named += [(one.text, point, 9, one.style) for one, point in limits]
    return [_label(*each, frame, ink) for each in named if each[0]]


def _label(
    text: str, point: Point, gap: int, style: str, frame: Frame, ink: Sequence[Point]
) -> Label:
    """The candidate that covers least ink: right of the point, above or below, narrower, left."""
    x, y = point
    longest = max(map(len, text.split()), default=1)
    whole, narrow = _wrapped(text), _wrapped(text, min(LABEL_LETTERS, longest))
    shapes = [Label(whole, x + gap, y, style)]
    if "…" not in "".join(narrow):
        shapes.append(Label(narrow, x + gap, y, style))
    left = Label(whole, x - gap, y, style, anchor="end")
    if left.left > LEFT:
        shapes.append(left)
    shifts = (0.0, -LABEL_SHIFT, LABEL_SHIFT)
    candidates = [replace(one, y=one.y + 4 + shift) for one in shapes for shift in shifts]
    inside = [one for one in candidates if TOP <= one.y <= frame.base + LABEL_LINE]

    def covered(one: Label) -> int:
        top = one.y - 11
        across, down = (one.left - 2, one.left + one.width), (top, top + one.height)
        return sum(across[0] <= x <= across[1] and down[0] <= y <= down[1] for x, y in ink)

    return min(inside or candidates, key=covered)


def _apart(labels: Sequence[Label], frame: Frame) -> Iterator[tuple[Label, Number]]:
    """Labels and their height, so that they do not cover one another."""
    columns: list[list[Label]] = []  # labels that could overlap
    for each in sorted(labels, key=lambda each: each.left):
        if columns and each.left < max(other.left + other.width for other in columns[-1]):
            columns[-1].append(each)
        else:
            columns.append([each])
    for column in columns:
        column.sort(key=lambda each: each.y)
        heights = [each.height for each in column]
        ys = spread_apart([each.y for each in column], heights, TOP + 4, frame.base + LABEL_LINE)
        yield from zip(column, ys, strict=True)


def spread_apart(
    wanted: Sequence[Number], sizes: Sequence[Number], low: Number, high: Number
) -> list[Number]:
    """Rising positions for things of these sizes without overlap, in [low, high] if they fit."""
    places: list[Number] = []
    for index, value in enumerate(wanted):
        places.append(max(value, places[-1] + sizes[index - 1] if places else low))
    room = high
    for index in reversed(range(len(places))):
        room -= sizes[index]
        places[index] = min(places[index], room)
    return places


@dataclass(frozen=True)
class IntervalAxis:
    """A common axis for rows of intervals."""

    low: float = 0.0
    high: float = 1.0

    @classmethod
    def around(cls, values: Sequence[Number], percent: bool = False) -> IntervalAxis:
        """An axis that holds all values; from 0 to 1 for percentages."""
        if percent and all(0 <= value <= 1 for value in values):
            return cls()
        low, high = float(min(values)), float(max(values))
        pad = 0.08 * (high - low) or max(abs(high), 1.0) * 0.05
        return cls(low - pad, high + pad)

    def x(self, value: Number) -> float:
        """The place of a value in SVG units; of one outside, the end."""
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return BAR_EDGE + (BAR_WIDTH - 2 * BAR_EDGE) * share

    def ticks(self, percent: bool, about: int = 2) -> list[tuple[float, str]]:
        """(position in percent of the row, number) of a few round numbers."""
        found = ticks(self.low, self.high, about)
        places = [100 * self.x(value) / BAR_WIDTH for value in found]
        return list(zip(places, distinct(found, percent), strict=True))

    def row(
        self,
        intervals: Sequence[tuple[str, tuple[Number, Number, Number]]],
        title: str,
        middle: Number | None = None,
    ) -> Markup:
        """Intervals, (CSS class, (value, lower end, upper end)) each, and a tick at `middle`."""
        numbers = [(style, *map(self.x, each)) for style, each in intervals]
        at = None if middle is None else self.x(middle)
        sizes = {"width": BAR_WIDTH, "edge": BAR_EDGE}
        return _svg("bar", title=title, intervals=numbers, middle=at, **sizes)


@dataclass(frozen=True)
class Scatter:
    """Two metrics against each other; `charts` are by name of `SCATTER_SIZES`, {} without points.

    `limited`: the recipe limits the metric `y`.
    """

    x: Metric
    y: Metric
    charts: dict[str, Markup]
    limited: bool = False


def scatter(
    x: Metric,
    y: Metric,
    series: Sequence[Series],
    points: str,
    rules: Sequence[Rule] = (),
    markers: Sequence[Marker] = (),
) -> Scatter:
    """Chart the metric `y` against the metric `x`.

    Args:
        points: what a point or a line is, "" if that is clear.
        rules: limits of `y` (horizontal).
    """
    axes = Axes(
        x=x.label.lower(),
        y=y.label.lower(),
        percent=y.percent,
        percent_x=x.percent,
        x_low=0.0 if x.percent else None,
        x_high=1.0 if x.percent else None,
        y_low=0.0 if y.better < 0 else LOW_RATE if y.percent else None,
        y_high=1.0 if y.percent else max((rule.at * 1.04 for rule in rules), default=None),
    )
    title = f"{y.label} against {x.label}" + (f", {points}" if points else "")
    charts = {
        name: line_chart(series, axes, title, True, size, rules, markers)
        for name, size in SCATTER_SIZES.items()
    }
    return Scatter(x, y, {name: one for name, one in charts.items() if one}, bool(rules))
