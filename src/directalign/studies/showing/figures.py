"""The three pictures that studies are told with: curves with bands, dots with intervals, and a plane with a place for every arm.

Names stand beside what they name, and an arm has one colour and mark everywhere (`palette`). A picture is about 1200 pixels
wide (`sheet`); equal numbers give equal files. Intervals are {value, low, high, ...}; ends that are None are not drawn.
"""

from __future__ import annotations

from .palette import Look, looks_of
from .placing import Box, apart, beside
from .sheet import DPI, LABEL, PAPER, SOFT, STYLE, WIDTH, Sheet, scale
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from matplotlib import rc_context
from matplotlib.axes import Axes


Number = int | float
Interval = Mapping[str, Any]
NAMES, ROW = 1.5, 3.5  # inches for the names beside a panel, and of a row of panels
FEW = 6
"""So many bands can be told apart; with more lines only the first arm has one, and the others an interval at their end."""
LINE_HEIGHT = 1.28 * LABEL * DPI / 72
NO_TITLES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Line:
    """One arm's curve: points (x, y), and for each the ends of its interval where they are known."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `named` writes the names beside the ends of the lines, `percent` shows y in [0, 1] as per cent."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    percent: bool = False
    log_x: bool = False
    log_y: bool = False
    named: bool = True
    span_y: tuple[Number, Number] | None = None


@dataclass(frozen=True)
class Column:
    """One column of dots: an interval per arm, None where it was not reached; `at` draws a line to compare with, e.g. the base model."""

    title: str
    values: Mapping[str, Interval | None]
    percent: bool = False
    log: bool = False
    at: Number | None = None


@dataclass(frozen=True)
class Place:
    """An arm in a plane: where it stands, with both intervals, and the way that it came there."""

    name: str
    x: Interval
    y: Interval
    trail: Sequence[tuple[Number, Number]] = ()


@dataclass(frozen=True)
class Scale:
    """An axis of a plane."""

    title: str
    percent: bool = False
    log: bool = False


def curves(file: Path, title: str, panels: Sequence[Panel], note: str = "", columns: int = 3, titles: Mapping[str, str] = NO_TITLES) -> Path:
    """Write panels of lines, at most `columns` beside each other; returns `file`.

    `title` says what to see, `note` what the numbers are; `titles` ({arm: title}) go before the palette's names.
    """
    looks = looks_of([line.name for panel in panels for line in panel.lines], titles)
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    with rc_context(STYLE):
        sheet = Sheet(title, note, len(rows) * ROW)
        for level, row in enumerate(reversed(rows)):
            for place, panel in enumerate(row):
                _draw_panel(_box_of(sheet, row, place, level), panel, looks)
        return sheet.save(file)


def dots_with_intervals(file: Path, title: str, columns: Sequence[Column], note: str = "", titles: Mapping[str, str] = NO_TITLES) -> Path:
    """Write one row per arm and one column per number: a dot with its interval, in the order of the first column; returns `file`."""
    looks = looks_of([name for column in columns for name in column.values], titles)
    left, gap, height = 1.75, 0.25, 0.34 * len(looks) + 0.75
    with rc_context(STYLE):
        sheet = Sheet(title, note, height)
        wide = (WIDTH - left - 0.2 - gap * (len(columns) - 1)) / len(columns)
        for place, column in enumerate(columns):
            _draw_column(sheet.box(left + place * (wide + gap), 0.45, wide, height - 0.8), column, looks, with_names=place == 0)
        return sheet.save(file)


def plane(file: Path, title: str, x: Scale, y: Scale, places: Sequence[Place], note: str = "", better: str = "", titles: Mapping[str, str] = NO_TITLES) -> Path:
    """Write every arm as a named mark with two intervals; `better` is a corner ("lower right") that an arrow points to. Returns `file`."""
    looks = looks_of([place.name for place in places], titles)
    with rc_context(STYLE):
        sheet = Sheet(title, note, 5.7)
        axes = sheet.box(0.95, 0.65, WIDTH - 1.2, 4.9)
        axes.set(xlabel=x.title, ylabel=y.title)
        for place in places:
            _draw_place(axes, place, looks[place.name])
        axes.margins(0.07)
        scale(axes, "x", x.log, x.percent)
        scale(axes, "y", y.log, y.percent)
        _name_places(axes, places, looks, [_point_to(axes, better)] if better else [])
        return sheet.save(file)


# --- curves -----------------------------------------------------------------------------------------------------------


def _box_of(sheet: Sheet, row: Sequence[Panel], place: int, level: int) -> Axes:
    """The axes of one of the panels that stand beside each other, on a level counted from below; all of a row are equally wide."""
    room = [0.75 + (NAMES if panel.named else 0.15) for panel in row]
    wide = (WIDTH - sum(room) - 0.1) / len(row)
    return sheet.box(0.75 + sum(room[:place]) + place * wide, level * ROW + 0.65, wide, 2.45)


def _draw_panel(axes: Axes, panel: Panel, looks: Mapping[str, Look]) -> None:
    axes.set_title(panel.title, size=11, weight="bold", loc="left", pad=8)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    for line in panel.lines:
        look = looks[line.name]
        axes.plot(line.x, line.y, color=look.colour, linewidth=look.weight, zorder=3 + look.weight, solid_capstyle="round")
        _mark(axes, line.x[-1], line.y[-1], look, 6)
        if line.low and (len(panel.lines) <= FEW or look.weight > 2):
            axes.fill_between(line.x, line.low, line.high, color=look.colour, alpha=0.15, linewidth=0, zorder=2)
        elif line.low:
            _whisker(axes, {"low": line.low[-1], "high": line.high[-1]}, line.x[-1], look, "y")
    if panel.span_y is not None:
        axes.set_ylim(*panel.span_y)
    scale(axes, "x", panel.log_x, percent=False)
    scale(axes, "y", panel.log_y, panel.percent)
    if panel.named:
        _name_lines(axes, panel.lines, looks)


def _name_lines(axes: Axes, lines: Sequence[Line], looks: Mapping[str, Look]) -> None:
    """The names under each other beside the right edge, as near the last points of their lines as there is room."""
    axes.autoscale_view()
    box = axes.get_window_extent()
    ends = [_pixels(axes, line.x[-1], line.y[-1]) for line in lines]
    heights = apart([height for _, height in ends], LINE_HEIGHT, float(box.y0) - 0.3 * DPI, float(box.y1))
    for line, end, height in zip(lines, ends, heights, strict=True):
        look, edge = looks[line.name], float(box.x1) + 16
        thread = {"arrowstyle": "-", "color": look.colour, "linewidth": 0.6, "alpha": 0.55, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (end[0] + 5, end[1]), (edge - 3, height), "figure pixels", "figure pixels", thread, annotation_clip=False)
        _write(axes, look, edge, height)


# --- dots -------------------------------------------------------------------------------------------------------------


def _draw_column(axes: Axes, column: Column, looks: Mapping[str, Look], with_names: bool) -> None:
    axes.set_title(column.title, size=10.5, weight="bold", loc="left", pad=6)
    for row, (name, look) in enumerate(looks.items()):
        value = column.values.get(name)
        if value is not None:
            _whisker(axes, value, row, look, "x")
            _mark(axes, value["value"], row, look, 7)
        elif name in column.values:
            sheet = {"facecolor": PAPER, "linewidth": 0, "pad": 1}
            axes.text(0.02, row, "not reached", color=SOFT, size=9, va="center", transform=axes.get_yaxis_transform(), bbox=sheet)
    if column.at is not None:
        axes.axvline(column.at, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_ylim(len(looks) - 0.4, -0.6)
    axes.set_yticks(range(len(looks)), [look.title for look in looks.values()] if with_names else [""] * len(looks))
    for text, look in zip(axes.get_yticklabels(), looks.values(), strict=True):
        text.set(color=look.ink, size=LABEL, weight=_weight(look))
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    scale(axes, "x", column.log, column.percent)


# --- plane ------------------------------------------------------------------------------------------------------------


def _draw_place(axes: Axes, place: Place, look: Look) -> None:
    if place.trail:
        axes.plot(*zip(*place.trail, strict=True), color=look.colour, linewidth=1, alpha=0.45, zorder=2)
    x, y = place.x["value"], place.y["value"]
    _whisker(axes, place.x, y, look, "x")
    _whisker(axes, place.y, x, look, "y")
    _mark(axes, x, y, look, 9)


def _name_places(axes: Axes, places: Sequence[Place], looks: Mapping[str, Look], taken: Sequence[Box]) -> None:
    """A name near every mark, clear of whiskers, marks and other names."""
    axes.autoscale_view()
    points = [_pixels(axes, place.x["value"], place.y["value"]) for place in places]
    sizes = [(0.64 * LABEL * len(looks[place.name].title) * DPI / 72, LINE_HEIGHT) for place in places]
    frame = axes.get_window_extent()
    found = beside(points, sizes, _covered(frame.get_points()), [*taken, *_whiskers(axes, places)])
    for place, spot in zip(places, found, strict=True):
        _write(axes, looks[place.name], spot.left, (spot.bottom + spot.top) / 2)


def _whiskers(axes: Axes, places: Sequence[Place]) -> list[Box]:
    """What the whiskers cover, in pixels."""
    ends = []
    for place in places:
        x, y = place.x["value"], place.y["value"]
        ends += [[(place.x["low"], y), (place.x["high"], y)], [(x, place.y["low"]), (x, place.y["high"])]]
    return [_covered(axes.transData.transform(pair)) for pair in ends if None not in (*pair[0], *pair[1])]


def _point_to(axes: Axes, corner: str) -> Box:
    """The word "better" with an arrow into a corner; the pixels that it takes."""
    x, y = (1.0 if "right" in corner else 0.0), (1.0 if "upper" in corner else 0.0)
    tip, tail = (abs(x - 0.012), abs(y - 0.02)), (abs(x - 0.045), abs(y - 0.07))
    arrow = {"arrowstyle": "-|>", "color": SOFT, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    side: Literal["left", "right"] = "right" if x else "left"
    axes.annotate("better", tip, tail, "axes fraction", "axes fraction", arrow, size=LABEL, color=SOFT, ha=side, va="center")
    return _covered(axes.transAxes.transform([(abs(x - 0.11), abs(y - 0.11)), (x, y)]))


# --- what they share --------------------------------------------------------------------------------------------------


def _mark(axes: Axes, x: Number, y: Number, look: Look, size: int) -> None:
    axes.plot([x], [y], look.mark, color=look.colour, markersize=size, zorder=4 + look.weight, markeredgecolor=PAPER, markeredgewidth=0.6)


def _whisker(axes: Axes, value: Interval, across: Number, look: Look, axis: Literal["x", "y"]) -> None:
    """The interval along an axis, at `across` on the other one."""
    if value["low"] is not None and value["high"] is not None:
        along, level = [value["low"], value["high"]], [across, across]
        axes.plot(*((along, level) if axis == "x" else (level, along)), color=look.colour, linewidth=1.6, alpha=0.6, solid_capstyle="round", zorder=3)


def _write(axes: Axes, look: Look, left: Number, middle: Number) -> None:
    """A name at pixels of the figure."""
    axes.annotate(look.title, (left, middle), xycoords="figure pixels", size=LABEL, color=look.ink, va="center", zorder=9, weight=_weight(look),
                  annotation_clip=False)  # fmt: skip


def _weight(look: Look) -> str:
    return "bold" if look.weight > 2 else "normal"


def _pixels(axes: Axes, x: Number, y: Number) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)


def _covered(corners: Any) -> Box:
    """The box around two corners in pixels, with a little air."""
    (left, bottom), (right, top) = corners.min(0), corners.max(0)
    return Box(float(left) - 2, float(bottom) - 2, float(right) + 2, float(top) + 2)
