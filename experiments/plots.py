"""Figures of the studies: curves with bands, dots with intervals, and a scatter of arms in a plane.

An arm has one colour, marker and name in every figure. Colours stay distinguishable under full
protanopia and deuteranopia. Names stand beside what they name. Equal numbers give equal files, 1248
pixels wide. Intervals are {value, low, high}; ends that are None are not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from .rows import Number, Rows, SeedInterval, over
from .tables import QUALITY

Interval = Mapping[str, Any]
INK, SOFT, GRID, PAPER = "#1b1d22", "#5d636e", "#e4e4df", "#ffffff"
WIDTH, DPI = 10.4, 120  # inches, pixels per inch
FONT = 10  # points
TITLE_LETTERS = 85  # a longer title is set smaller
NAMES, ROW = 1.5, 3.5  # inches for the names beside a panel, and of a row of panels
MAX_BANDS = 6  # with more lines only the bold arm has a band, the others an interval at the end
MAX_LEGEND = 8  # with more arms the legend stands beside a plane
LINE_HEIGHT = 1.28 * FONT * DPI / 72
NO_TITLES: Mapping[str, str] = {}
STYLE: dict[Any, Any] = {"font.family": "DejaVu Sans", "font.size": FONT, "text.color": INK}
STYLE |= {"axes.facecolor": PAPER, "axes.edgecolor": "#b9bcc2", "axes.labelcolor": SOFT}
STYLE |= {"axes.labelsize": FONT, "axes.linewidth": 0.8, "axes.axisbelow": True, "axes.grid": True}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"grid.color": GRID, "grid.linewidth": 0.8}
for _axis in "xy":
    STYLE |= {f"{_axis}tick.color": SOFT, f"{_axis}tick.labelsize": 9.5}
    STYLE |= {f"{_axis}tick.{which}.size": 0 for which in ("major", "minor")}


# --- arms -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArmStyle:
    """Name, colour, marker and line width (points) of an arm."""

    title: str
    color: str
    marker: str
    width: float = 1.5

    @property
    def ink(self) -> str:
        """The colour darkened for text: WCAG 2 contrast of 4.5 on white."""
        encoded = [int(self.color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in encoded]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        dark = [min(1.0, (1.05 / 4.5 - 0.05) / luminance) * v for v in linear]
        text = [12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055 for v in dark]
        return "#" + "".join(f"{round(255 * v):02x}" for v in text)

    @property
    def weight(self) -> str:
        return "bold" if self.width > 2 else "normal"


STYLES = {
    "base": ArmStyle("base model", "#6b7280", "o"),
    "srpo": ArmStyle("SRPO, anchored", "#1239c4", "o", 2.6),
    "srpo_official": ArmStyle("SRPO, official", "#3593ff", "D"),
    "direct_align": ArmStyle("Direct-Align", "#0a1f55", "s"),
    "refl": ArmStyle("ReFL", "#a50600", "^"),
    "draft_k": ArmStyle("DRaFT-K", "#ddb703", "v"),
    "draft_lv": ArmStyle("DRaFT-LV", "#b67624", "<"),
    "alignprop": ArmStyle("AlignProp", "#520000", ">"),
    "drtune": ArmStyle("DRTune", "#e181d0", "P"),
    "leapalign": ArmStyle("LeapAlign", "#b4024d", "X"),
    "flowbp": ArmStyle("FlowBP", "#f19fa9", "p"),
    "flow_grpo": ArmStyle("Flow-GRPO", "#1a4931", "h"),
    "grpo_relative": ArmStyle("GRPO, relative", "#0db962", "d"),
}
OTHER_COLORS = ("#1239c4", "#ffa52d", "#03a978", "#790f29")
OTHER_COLORS += ("#69bdd6", "#70730b", "#5298ff", "#254169")
OTHER_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")


def title_of(name: str) -> str:
    """The printed name of an arm."""
    return STYLES[name].title if name in STYLES else name.replace("_", " ")


def styles_of(names: Sequence[str], titles: Mapping[str, str]) -> dict[str, ArmStyle]:
    """A style for every name of one figure: its own or the next free one; `titles` overrule."""
    others = list(dict.fromkeys(name for name in names if name not in STYLES))
    found = {}
    for name in names:
        style = STYLES.get(name)
        if style is None:
            place = others.index(name)
            color = OTHER_COLORS[place % len(OTHER_COLORS)]
            style = ArmStyle(title_of(name), color, OTHER_MARKERS[place % len(OTHER_MARKERS)])
        found[name] = replace(style, title=titles.get(name, style.title))
    return found


# --- what a figure shows --------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """The curve of one arm: points (x, y), and the ends of their intervals where known."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `named` writes names beside the line ends, `percent` is about y."""

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
class DotColumn:
    """An interval per arm (None: not reached), and the value `at` of a line to compare with."""

    title: str
    values: Mapping[str, Interval | None]
    percent: bool = False
    log: bool = False
    at: Number | None = None


@dataclass(frozen=True)
class Point:
    """An arm in a plane, with both intervals and its trajectories."""

    name: str
    x: Interval
    y: Interval
    trails: Sequence[Sequence[tuple[Number, Number]]] = ()


def line(name: str, points: Sequence[tuple[Number, SeedInterval]], banded: bool = True) -> Line:
    """Means along x, with a band where all intervals are known."""
    means = [mean for _, mean in points]
    low = [mean["low"] for mean in means if mean["low"] is not None]
    high = [mean["high"] for mean in means if mean["high"] is not None]
    known = banded and len(low) == len(high) == len(means)
    x, y = [x for x, _ in points], [mean["value"] for mean in means]
    return Line(name, x, y, low if known else (), high if known else ())


def lines_along(rows: Rows, x: str, y: str, banded: bool = False) -> list[Line]:
    """One line per arm: means over its seeds of `y` over means of `x`, at every measurement.

    A mean over one seed has no interval, and is its own band.
    """
    lines = []
    for arm in rows.arms:
        points = [(over(each, x), over(each, y)) for each in zip(*rows.runs_of(arm), strict=True)]
        known = [(a["value"], b) for a, b in points if a is not None and b is not None]
        for _, mean in known:
            if mean["low"] is None or mean["high"] is None:
                mean["low"] = mean["high"] = mean["value"]
        if known:
            lines.append(line(arm, known, banded))
    return lines


def panels_over_updates(
    rows: Rows, arms: Sequence[str], keys: Mapping[str, str] = QUALITY, banded: bool = True
) -> list[Panel]:
    """A panel per number of `keys` ({key: title}): means over seeds along the updates."""
    panels = []
    for key, title in keys.items():
        lines = [line(arm, rows.curve(arm, key), banded) for arm in arms]
        percent = any(name in key for name in ("photo_rate", "content", "style_kept"))
        panels.append(Panel(title, "updates", title, lines, percent))
    return panels


# --- figures --------------------------------------------------------------------------------------


class Sheet:
    """A figure laid out in inches from the lower left: `height` inches below title and note."""

    def __init__(self, title: str, note: str, height: float) -> None:
        self.height = height + (0.8 if note else 0.55)
        self.figure = Figure((WIDTH, self.height), dpi=DPI, facecolor=PAPER)
        self.canvas = FigureCanvasAgg(self.figure)
        size = min(14, 14 * TITLE_LETTERS / max(1, len(title)))
        left, top = 0.25 / WIDTH, 1 - 0.2 / self.height
        self.figure.text(left, top, title, size=size, weight="bold", va="top")
        self.figure.text(left, top - 0.3 / self.height, note, size=FONT, color=SOFT, va="top")

    def box(self, left: float, bottom: float, wide: float, high: float) -> Axes:
        """Axes at these inches."""
        h = self.height
        return self.figure.add_axes((left / WIDTH, bottom / h, wide / WIDTH, high / h))

    def save(self, file: Path) -> Path:
        """Write a PNG of 256 colours that holds nothing but pixels; its folder is created."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.canvas.draw()
        pixels = Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3])
        method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
        pixels.quantize(256, method, kmeans=1, dither=dither).save(file, optimize=True)
        return file


def curves(
    file: Path,
    title: str,
    panels: Sequence[Panel],
    note: str = "",
    columns: int = 3,
    titles: Mapping[str, str] = NO_TITLES,
) -> Path:
    """Write panels of lines, at most `columns` side by side; `titles` ({arm: title}) overrule."""
    styles = styles_of([line.name for panel in panels for line in panel.lines], titles)
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    with rc_context(STYLE):
        sheet = Sheet(title, note, len(rows) * ROW)
        for level, row in enumerate(reversed(rows)):
            room = [0.75 + (NAMES if panel.named else 0.15) for panel in row]
            wide = (WIDTH - sum(room) - 0.1) / len(row)
            for place, panel in enumerate(row):
                left = 0.75 + sum(room[:place]) + place * wide
                _draw_panel(sheet.box(left, level * ROW + 0.65, wide, 2.45), panel, styles)
        return sheet.save(file)


def _draw_panel(axes: Axes, panel: Panel, styles: Mapping[str, ArmStyle]) -> None:
    axes.set_title(panel.title, size=11, weight="bold", loc="left", pad=8)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    for line in panel.lines:
        style = styles[line.name]
        look: dict[str, Any] = {"color": style.color, "linewidth": style.width}
        axes.plot(line.x, line.y, zorder=3 + style.width, solid_capstyle="round", **look)
        _mark(axes, line.x[-1], line.y[-1], style, 6)
        if line.low and (len(panel.lines) <= MAX_BANDS or style.width > 2):
            band: dict[str, Any] = {"color": style.color, "alpha": 0.15, "linewidth": 0}
            axes.fill_between(line.x, line.low, line.high, zorder=2, **band)
        elif line.low:
            _whisker(axes, {"low": line.low[-1], "high": line.high[-1]}, line.x[-1], style, "y")
    if panel.span_y is not None:
        axes.set_ylim(*panel.span_y)
    _ticks(axes, "x", panel.log_x, percent=False)
    _ticks(axes, "y", panel.log_y, panel.percent)
    if panel.named:
        _name_lines(axes, panel.lines, styles)


def _name_lines(axes: Axes, lines: Sequence[Line], styles: Mapping[str, ArmStyle]) -> None:
    """Names beside the right edge, as near the ends of their lines as there is room."""
    axes.autoscale_view()
    box = axes.get_window_extent()
    ends = [axes.transData.transform((line.x[-1], line.y[-1])).tolist() for line in lines]
    low, high, edge = float(box.y0) - 0.3 * DPI, float(box.y1), float(box.x1) + 16
    heights = spread_out([height for _, height in ends], LINE_HEIGHT, low, high)
    for line, end, height in zip(lines, ends, heights, strict=True):
        style = styles[line.name]
        arrow = {"arrowstyle": "-", "color": style.color, "linewidth": 0.6, "alpha": 0.55}
        ends_at = ((end[0] + 5, end[1]), (edge - 3, height), "figure pixels", "figure pixels")
        arrow |= {"shrinkA": 0, "shrinkB": 0}
        axes.annotate("", *ends_at, arrow, annotation_clip=False)
        look: dict[str, Any] = {"size": FONT, "color": style.ink, "weight": style.weight}
        look |= {"xycoords": "figure pixels", "va": "center", "zorder": 9}
        axes.annotate(style.title, (edge, height), annotation_clip=False, **look)


def dots_with_intervals(
    file: Path,
    title: str,
    columns: Sequence[DotColumn],
    note: str = "",
    titles: Mapping[str, str] = NO_TITLES,
) -> Path:
    """Write one row per arm and one column per number: a dot with its interval."""
    styles = styles_of([name for column in columns for name in column.values], titles)
    left, gap, height = 1.75, 0.25, 0.34 * len(styles) + 0.75
    with rc_context(STYLE):
        sheet = Sheet(title, note, height)
        wide = (WIDTH - left - 0.2 - gap * (len(columns) - 1)) / len(columns)
        for place, column in enumerate(columns):
            axes = sheet.box(left + place * (wide + gap), 0.45, wide, height - 0.8)
            _draw_column(axes, column, styles, with_names=place == 0)
        return sheet.save(file)


def _draw_column(
    axes: Axes, column: DotColumn, styles: Mapping[str, ArmStyle], with_names: bool
) -> None:
    axes.set_title(column.title, size=10.5, weight="bold", loc="left", pad=6)
    for row, (name, style) in enumerate(styles.items()):
        value = column.values.get(name)
        if value is not None:
            _whisker(axes, value, row, style, "x")
            _mark(axes, value["value"], row, style, 7)
        elif name in column.values:
            where: dict[str, Any] = {"va": "center", "transform": axes.get_yaxis_transform()}
            box = {"facecolor": PAPER, "linewidth": 0, "pad": 1}
            axes.text(0.02, row, "not reached", color=SOFT, size=9, bbox=box, **where)
    if column.at is not None:
        axes.axvline(column.at, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_ylim(len(styles) - 0.4, -0.6)
    names = [style.title if with_names else "" for style in styles.values()]
    axes.set_yticks(range(len(styles)), names)
    for text, style in zip(axes.get_yticklabels(), styles.values(), strict=True):
        text.set(color=style.ink, size=FONT, weight=style.weight)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    _ticks(axes, "x", column.log, column.percent)


def plane(
    file: Path,
    title: str,
    x: str,
    y: str,
    points: Sequence[Point],
    note: str = "",
    log_x: bool = False,
) -> Path:
    """Write every arm as a marker with two intervals and its trajectories; rates in per cent."""
    styles = styles_of([point.name for point in points], NO_TITLES)
    beside = len(points) > MAX_LEGEND
    with rc_context(STYLE):
        sheet = Sheet(title, note, 5.7)
        axes = sheet.box(0.95, 0.65, WIDTH - (3.9 if beside else 1.2), 4.9)
        axes.set(xlabel=x, ylabel=y)
        for point in points:
            style, x_at, y_at = styles[point.name], point.x["value"], point.y["value"]
            for trail in point.trails:
                x_and_y = zip(*trail, strict=True)
                axes.plot(*x_and_y, color=style.color, linewidth=1, alpha=0.45, zorder=2)
            _whisker(axes, point.x, y_at, style, "x")
            _whisker(axes, point.y, x_at, style, "y")
            _mark(axes, x_at, y_at, style, 9, label=style.title)
        axes.margins(0.07)
        _ticks(axes, "x", log_x, "colour" not in x)
        _ticks(axes, "y", False, "colour" not in y)
        where: dict[str, Any] = {"loc": "best"}
        if beside:
            where = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
        axes.legend(frameon=True, framealpha=0.8, edgecolor=GRID, fontsize=FONT, **where)
        return sheet.save(file)


def strips(file: Path, title: str, rows: Sequence[tuple[str, Image.Image]]) -> Path:
    """Write one row of images of equal size per name."""
    wide = WIDTH - NAMES - 0.45
    high = wide * rows[0][1].height / rows[0][1].width
    with rc_context(STYLE):
        sheet = Sheet(title, "", len(rows) * (high + 0.07) + 0.1)
        for place, (name, image) in enumerate(reversed(rows)):
            bottom = 0.1 + place * (high + 0.07)
            axes = sheet.box(NAMES + 0.25, bottom, wide, high)
            axes.imshow(np.asarray(image), interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            middle = (bottom + high / 2) / sheet.height
            sheet.figure.text(0.25 / WIDTH, middle, fill(name, 20), va="center")
        return sheet.save(file)


def _ticks(axes: Axes, which: Literal["x", "y"], log: bool, percent: bool) -> None:
    """Few round ticks: 40 %, 3 k, 0.05."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if log:
        axes.set(**{f"{which}scale": "log"})
        low, high = axis.get_view_interval()
        subs = (1.0, 3.0) if math.log10(high / low) < 2.5 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))

    def text(value: float, _: object) -> str:
        if percent:
            return f"{100 * value:.0f} %"
        for size, letter in ((1e6, " M"), (1e3, " k")):
            if abs(value) >= size:
                return f"{value / size:g}{letter}".replace("-", "−")
        return f"{value:.6g}".replace("-", "−")

    axis.set_major_formatter(FuncFormatter(text))


def _mark(
    axes: Axes, x: Number, y: Number, style: ArmStyle, size: int, label: str | None = None
) -> None:
    look: dict[str, Any] = {"color": style.color, "markersize": size, "zorder": 4 + style.width}
    edge: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 0.6, "label": label}
    axes.plot([x], [y], style.marker, **look, **edge)


def _whisker(
    axes: Axes, value: Interval, across: Number, style: ArmStyle, axis: Literal["x", "y"]
) -> None:
    """The interval along an axis, at `across` on the other one."""
    if value["low"] is not None and value["high"] is not None:
        along, level = [value["low"], value["high"]], [across, across]
        look: dict[str, Any] = {"color": style.color, "linewidth": 1.6, "alpha": 0.6, "zorder": 3}
        points = (along, level) if axis == "x" else (level, along)
        axes.plot(*points, solid_capstyle="round", **look)


# --- labels that do not overlap -------------------------------------------------------------------


def spread_out(wanted: Sequence[Number], gap: Number, low: Number, high: Number) -> list[Number]:
    """Positions near the wanted ones, in their order, `gap` apart, within [low, high] if they fit.

    Neighbours that would overlap form a block around the mean of what they want.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[Number, int]] = []  # (sum of the starts that its members want, members)

    def start(block: tuple[Number, int]) -> Number:
        total, count = block
        return max(low, min(total / count, high - (count - 1) * gap))

    for index in order:
        blocks.append((wanted[index], 1))
        while len(blocks) > 1 and start(blocks[-2]) + blocks[-2][1] * gap > start(blocks[-1]):
            (second, more), (first, count) = blocks.pop(), blocks.pop()
            blocks.append((first + second - more * count * gap, count + more))
    spread = [start(block) + place * gap for block in blocks for place in range(block[1])]
    return [place for _, place in sorted(zip(order, spread, strict=True))]
