"""Charts as inline SVG: lines and points, labels at the lines themselves, the numbers as tooltips, and where a run stopped.

Colours come from the page's CSS through classes (`s0`, `s1`, ...), so a chart follows light and dark by itself.
"""

from __future__ import annotations

from .frame import LEFT, LETTER, NARROW, TOP, Axes, Frame
from .labels import Label, Place, broken, labels
from .writing import Number, written
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from markupsafe import Markup


MOST_POINTS = 160
"""A line with more points is drawn through the means of neighbouring ones."""
FEW_POINTS = 40
"""A line of no more points shows them as dots."""

INK = 5
"""How far apart, in SVG units, a line is probed for what a label would cover."""

Point = tuple[Number, Number]
Ends = tuple[Number, Number, Number, Number]


@dataclass(frozen=True)
class Series:
    """One line: its points, an optional band (x, low, high), and the class that colours it."""

    label: str
    points: Sequence[Point]
    style: str = "s0"
    band: Sequence[tuple[Number, Number, Number]] = ()
    notes: Sequence[str] = ()
    """One more line per point for its tooltip."""
    spread: Sequence[Ends | None] = ()
    """Intervals of a point (x low, x high, y low, y high), drawn as a cross."""


@dataclass(frozen=True)
class Mark:
    """A rule with its name: upright at `x`, a point of time on a chart of updates, or `across` the chart at the height `x`."""

    x: Number
    text: str
    style: str
    across: bool = False


@dataclass(frozen=True)
class Spot:
    """A point that stands out: "stop" is crossed, "start" and "end" are named alone, all others ringed."""

    point: Point
    text: str
    kind: str
    style: str = "s0"


def line_chart(
    series: Sequence[Series],
    axes: Axes,
    title: str,
    dots: bool | None = None,
    size: tuple[int, int] = NARROW,
    marks: Sequence[Mark] = (),
    spots: Sequence[Spot] = (),
) -> Markup:
    """A chart with one line per series, `size` = (width, height) in SVG units; empty Markup where there is nothing to draw.

    `dots` None shows the points of short lines alone.
    """
    drawn = [_thinned(one) for one in series if one.points]
    if not drawn:
        return Markup("")
    names = [*(spot.text for spot in spots), *(mark.text for mark in marks if mark.across)]
    frame = _frame(drawn, axes, size, names)
    shown = dots if dots is not None else max(len(one.points) for one in drawn) <= FEW_POINTS
    parts = [
        *frame.drawn(axes),
        *_marks(frame, marks),
        *(part for one in drawn for part in _series(frame, one, axes, shown)),
    ]
    parts += [
        *(_spot(frame, spot) for spot in spots),
        *labels(
            [*_ends(frame, drawn), *_names(frame, spots), *_limits(frame, marks)],
            frame,
            _ink(frame, drawn),
        ),
    ]
    head = f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    return Markup(head + "".join(parts) + "</svg>")


def _frame(
    series: Sequence[Series], axes: Axes, size: tuple[int, int], names: Sequence[str]
) -> Frame:
    crosses = [ends for one in series for ends in one.spread if ends is not None]
    xs = [x for one in series for x, _ in one.points] + [
        end for ends in crosses for end in ends[:2]
    ]
    ys = [y for one in series for _, y in one.points] + [
        end for one in series for _, *ends in one.band for end in ends
    ]
    letters = max(
        len(line) for name in (*(one.label for one in series), *names) for line in broken(name)
    )
    return Frame.around(xs, ys + [end for ends in crosses for end in ends[2:]], axes, size, letters)


def _thinned(one: Series) -> Series:
    """A long line through the means of equally many neighbours each; both ends of the x axis may move in a little."""
    if len(one.points) <= MOST_POINTS:
        return one
    width = -(-len(one.points) // MOST_POINTS)
    groups = [one.points[start : start + width] for start in range(0, len(one.points), width)]
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
    return replace(
        one, points=means, notes=[f"mean of {len(group)} points" for group in groups], spread=()
    )


def _marks(frame: Frame, marks: Sequence[Mark]) -> Iterator[str]:
    taken = float("-inf")
    for mark in marks:
        if mark.across and frame.y_low <= mark.x <= frame.y_high:
            y = frame.y(mark.x)
            yield f'<line class="mark-line {mark.style}" x1="{LEFT}" x2="{frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        elif not mark.across and frame.x_low <= mark.x <= frame.x_high:
            x = frame.x(mark.x)
            before = x - LETTER * len(mark.text) - 8 > max(taken, LEFT - 20)
            shift, anchor = (-4, "end") if before else (4, "start")
            yield f'<line class="mark-line {mark.style}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 10}" y2="{frame.base}"/>'
            yield f'<text class="mark-name {mark.style}" x="{x + shift:.1f}" y="{TOP - 3}" text-anchor="{anchor}">{escape(mark.text)}</text>'
            taken = x if before else x + LETTER * len(mark.text)


def _series(frame: Frame, one: Series, axes: Axes, dots: bool) -> Iterator[str]:
    if len(one.band) > 1:
        upper = [f"{frame.x(x):.1f},{frame.y(high):.1f}" for x, _, high in one.band]
        lower = [f"{frame.x(x):.1f},{frame.y(low):.1f}" for x, low, _ in reversed(one.band)]
        yield f'<polygon class="band {one.style}" points="{" ".join(upper + lower)}"/>'
    for (x, y), ends in zip(one.points, one.spread, strict=False):
        yield from _cross(frame, one.style, x, y, ends) if ends is not None else ()
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in one.points)
    yield f'<polyline class="line {one.style}" points="{path}"/>'
    for place, point in enumerate(one.points):
        yield _dot(frame, one, axes, place, point, dots)


def _cross(frame: Frame, style: str, x: Number, y: Number, ends: Ends) -> Iterator[str]:
    left, right, low, high = frame.x(ends[0]), frame.x(ends[1]), frame.y(ends[2]), frame.y(ends[3])
    yield f'<line class="whisker {style}" x1="{left:.1f}" x2="{right:.1f}" y1="{frame.y(y):.1f}" y2="{frame.y(y):.1f}"/>'
    yield f'<line class="whisker {style}" x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'


def _dot(frame: Frame, one: Series, axes: Axes, place: int, point: Point, shown: bool) -> str:
    """A point with its tooltip; an invisible one where there are too many to show."""
    x, y = point
    tip = f"{axes.x} {written(x, axes.percent_x)}, {axes.y} {written(y, axes.percent)}"
    words = [part for part in (one.label, tip, *one.notes[place : place + 1]) if part]
    kind, radius = ("dot", 3.2 if len(one.points) > 1 else 5.5) if shown else ("touch", 6)
    circle = f'<circle class="{kind} {one.style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="{radius}">'
    return f"{circle}<title>{escape(chr(10).join(words))}</title></circle>"


def _spot(frame: Frame, spot: Spot) -> str:
    x, y = frame.x(spot.point[0]), frame.y(spot.point[1])
    title = f"<title>{escape(spot.text)}</title>"
    if spot.kind in ("start", "end"):
        return ""
    if spot.kind == "early_stopping":
        path = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
        return f'<path class="spot-back" d="{path}"/><path class="spot {spot.style}" d="{path}">{title}</path>'
    return f'<circle class="spot {spot.style}" cx="{x:.1f}" cy="{y:.1f}" r="8">{title}</circle>'


def _ends(frame: Frame, series: Sequence[Series]) -> list[Label]:
    """The lines' names at their last points."""
    return [
        Label(one.label, frame.x(one.points[-1][0]), frame.y(one.points[-1][1]), one.style)
        for one in series
    ]


def _limits(frame: Frame, marks: Sequence[Mark]) -> list[Label]:
    """The names of rules across the chart, right of it."""
    inside = [mark for mark in marks if mark.across and frame.y_low <= mark.x <= frame.y_high]
    return [Label(mark.text, frame.right, frame.y(mark.x), mark.style) for mark in inside]


def _names(frame: Frame, spots: Sequence[Spot]) -> list[Label]:
    return [
        Label(spot.text, frame.x(spot.point[0]), frame.y(spot.point[1]), spot.style, gap=13)
        for spot in spots
    ]


def _ink(frame: Frame, series: Sequence[Series]) -> list[Place]:
    """Places along the lines, the crosses and the lower axis, in SVG units."""
    lines = [
        ((frame.x(x), frame.y(y)), (frame.x(to_x), frame.y(to_y)))
        for one in series
        for (x, y), (to_x, to_y) in pairwise(one.points)
    ]
    for one in series:
        for (x, y), ends in zip(one.points, one.spread, strict=False):
            if ends is not None:
                lines.append(((frame.x(ends[0]), frame.y(y)), (frame.x(ends[1]), frame.y(y))))
                lines.append(((frame.x(x), frame.y(ends[2])), (frame.x(x), frame.y(ends[3]))))
    lines.append(((LEFT, frame.base), (frame.right, frame.base)))
    return [place for start, end in lines for place in _along(start, end)]


def _along(start: Place, end: Place) -> Iterator[Place]:
    """Places on a straight line, `INK` units apart."""
    pieces = max(1, math.ceil(math.dist(start, end) / INK))
    for piece in range(pieces + 1):
        share = piece / pieces
        yield start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
