"""Names beside points and lines: out of the way of what is drawn where that is possible, and never over one another."""

from __future__ import annotations

from .frame import LETTER, TOP, Frame
from .writing import Number
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape


LABEL_LETTERS, LABEL_LINE = 18, 15
"""A label is broken into lines of so many letters, or of a word each where that leaves a line alone; so far apart."""
ROOM = 16
"""How far above or below its point a label may stand to leave a line alone."""

Place = tuple[Number, Number]


@dataclass(frozen=True)
class Label:
    """A name beside the point (x, y), both in SVG units, `gap` away from it, in the colour of `style`."""

    text: str
    x: Number
    y: Number
    style: str
    gap: Number = 9
    letters: int = LABEL_LETTERS

    @property
    def lines(self) -> list[str]:
        return broken(self.text, self.letters)

    @property
    def width(self) -> Number:
        return LETTER * max(map(len, self.lines))

    @property
    def height(self) -> Number:
        return LABEL_LINE * len(self.lines) + 2


@dataclass(frozen=True)
class _Placed:
    label: Label
    x: Number
    y: Number
    anchor: str

    @property
    def left(self) -> Number:
        return self.x if self.anchor == "start" else self.x - self.label.width

    @property
    def right(self) -> Number:
        return self.left + self.label.width


def labels(wanted: Sequence[Label], frame: Frame, drawn: Sequence[Place] = ()) -> list[str]:
    """Names beside their points as SVG; `drawn` are places on the chart that they should leave free, in SVG units."""
    found = []
    for column in _columns([_free(each, frame, drawn) for each in wanted if each.text]):
        heights = [each.label.height for each in column]
        places = apart([each.y for each in column], heights, TOP + 4, frame.base + LABEL_LINE)
        found += [_text(each, y) for each, y in zip(column, places, strict=True)]
    return found


def _columns(placed: Sequence[_Placed]) -> list[list[_Placed]]:
    """Labels that stand above one another, from the top down: only those can be in each other's way."""
    columns: list[list[_Placed]] = []
    for each in sorted(placed, key=lambda each: each.left):
        last = max((other.right for other in columns[-1]), default=0) if columns else float("-inf")
        if each.left < last:
            columns[-1].append(each)
        else:
            columns.append([each])
    return [sorted(column, key=lambda each: each.y) for column in columns]


def _free(label: Label, frame: Frame, drawn: Sequence[Place]) -> _Placed:
    """Right of the point, else right above or below it, else narrower, else left of it: the first that covers nothing, or the one that covers least."""
    right, left = label.x + label.gap, label.x - label.gap
    shifts = (0.0, -ROOM, ROOM)
    tried = [_Placed(label, right, label.y + 4 + shift, "start") for shift in shifts]
    narrow = replace(
        label, letters=min(LABEL_LETTERS, max(map(len, label.text.split()), default=1))
    )
    if "…" not in "".join(narrow.lines):
        tried += [_Placed(narrow, right, label.y + 4 + shift, "start") for shift in shifts]
    tried += [
        _Placed(label, left, label.y + 4 + shift, "end")
        for shift in shifts
        if left - label.width > frame.x(frame.x_low)
    ]
    inside = [each for each in tried if TOP <= each.y <= frame.base + LABEL_LINE] or tried
    return min(inside, key=lambda each: _covered(each, drawn))


def _covered(placed: _Placed, drawn: Sequence[Place]) -> int:
    """How many of the places a label would stand on."""
    top, bottom = placed.y - 11, placed.y - 11 + placed.label.height
    return sum(placed.left - 2 <= x <= placed.right and top <= y <= bottom for x, y in drawn)


def _text(placed: _Placed, y: Number) -> str:
    spans = "".join(
        f'<tspan x="{placed.x:.1f}" dy="{LABEL_LINE if row else 0}">{escape(line)}</tspan>'
        for row, line in enumerate(placed.label.lines)
    )
    return f'<text class="label {placed.label.style}" x="{placed.x:.1f}" y="{y:.1f}" text-anchor="{placed.anchor}">{spans}</text>'


def broken(label: str, letters: int = LABEL_LETTERS) -> list[str]:
    """A label in lines of at most so many letters, three of them; what does not fit is cut."""
    return textwrap.wrap(label, letters, max_lines=3, placeholder=" …") or [""]


def apart(
    wanted: Sequence[Number], sizes: Sequence[Number], low: Number, high: Number
) -> list[Number]:
    """Rising positions for things of the given sizes: none over another, kept inside [low, high] where they fit."""
    places: list[Number] = []
    for index, value in enumerate(wanted):
        places.append(max(value, places[-1] + sizes[index - 1] if places else low))
    room = high
    for index in reversed(range(len(places))):
        room -= sizes[index]
        places[index] = min(places[index], room)
    return places
