"""Tables of means over seeds, and how their numbers are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .rows import Number, Pick, Row, Rows, SeedInterval, cost_ratio, difference, over

QUALITY = {"photo_rate": "photo rate", "content": "content", "color_drift": "colour drift"}
COSTS = {"call_equivalents": "NFE ratio", "seconds": "seconds ratio"}
DASH, MINUS = "–", "−"
VERSUS = ("compared", *QUALITY.values(), *COSTS.values(), "seeds")
"""Columns of `versus`."""


@dataclass(frozen=True)
class Table:
    """Printed cells under column titles. Raises: ValueError for a row of another length."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row needs {len(self.columns)} cells, got {list(row)}")

    def markdown(self) -> str:
        """A Markdown table: the first column left-aligned, the others right-aligned."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (self.columns, *self.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (lines[0], rule, *lines[1:]))


@dataclass(frozen=True)
class Column:
    """One number of a table of means over seeds, and how it is printed."""

    key: str
    title: str
    digits: int = 3
    percent: bool = False
    interval: bool = True

    def cell(self, rows: Sequence[Row]) -> str:
        """Mean over the rows, one per seed, with its interval; a dash where a row lacks it."""
        found = over(rows, self.key)
        if not self.interval:
            return number(None if found is None else found["value"], self.digits)
        return with_interval(found, self.digits, self.percent)


MEASURED = tuple(Column(key, title) for key, title in QUALITY.items())


def means(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """The cells of one table line."""
    return [column.cell(rows) for column in columns]


def number(value: Number | None, digits: int = 2) -> str:
    """`value` with `digits` decimals, thousands apart; a dash for None and non-finite numbers."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{abs(value):,.{digits}f}".replace(",", " ")
    return MINUS + text if value < 0 and any(digit in text for digit in "123456789") else text


def with_interval(
    interval: Mapping[str, Any] | None, digits: int = 2, percent: bool = False
) -> str:
    """ "0.46 (0.40–0.52)" or "46 % (40–52)"; the value alone where its ends are unknown."""
    if interval is None or interval["value"] is None:
        return DASH
    factor, unit = (100, " %") if percent else (1, "")
    value, low, high = (
        None if interval[key] is None else factor * interval[key]
        for key in ("value", "low", "high")
    )
    shown = number(value, digits) + (unit if number(value, digits) != DASH else "")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return shown
    between = " to " if min(low, high) < 0 else "–"
    return f"{shown} ({number(low, digits)}{between}{number(high, digits)})"


def signed(interval: SeedInterval | None, digits: int = 3) -> str:
    """A difference with its sign, also when it is positive."""
    if interval is None:
        return DASH
    return ("+" if interval["value"] > 0 else "") + with_interval(interval, digits)


def versus(runs: Rows, ours: str, theirs: str, conditions: Mapping[str, Pick]) -> list[list[str]]:
    """One table line per condition: differences in `QUALITY`, ratios in `COSTS`, seeds."""
    lines = []
    for condition, pick in conditions.items():
        pairs = runs.pairs(ours, theirs, pick)
        cells = [signed(difference(pairs, key)) for key in QUALITY]
        cells += [with_interval(cost_ratio(pairs, key), 2) for key in COSTS]
        lines.append([condition, *cells, str(len(pairs))])
    return lines
