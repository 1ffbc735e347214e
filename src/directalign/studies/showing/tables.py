"""Markdown tables, and numbers as they are printed: true minus signs, an interval behind every mean, a dash where nothing is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


DASH, MINUS = "–", "−"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right; a pipe in a cell stays one.

    Raises:
        ValueError: a row that is not as long as `headers`.
    """
    uneven = [list(row) for row in rows if len(row) != len(headers)]
    if uneven:
        raise ValueError(f"every row needs {len(headers)} cells ({', '.join(headers)}), got {uneven[0]}")
    rule = ["---", *["---:"] * (len(headers) - 1)]
    return "\n".join(_line(row) for row in ([_escaped(cell) for cell in headers], rule, *([_escaped(cell) for cell in row] for row in rows)))


def number(value: int | float | None, digits: int = 2) -> str:
    """`value` with `digits` places, thousands apart; a dash for None and for what is not finite."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{abs(value):,.{digits}f}".replace(",", " ")
    return MINUS + text if value < 0 and any(digit in text for digit in "123456789") else text


def with_interval(interval: Mapping[str, Any] | None, digits: int = 2, percent: bool = False) -> str:
    """`{value, low, high, n}` as "0.46 (0.40–0.52)", or in per cent as "46 % (40–52)"; the value alone where its ends are unknown."""
    if interval is None or interval["value"] is None:
        return DASH
    factor, unit = (100, " %") if percent else (1, "")
    value, low, high = (None if interval[key] is None else factor * interval[key] for key in ("value", "low", "high"))
    shown = number(value, digits) + (unit if number(value, digits) != DASH else "")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return shown
    between = " to " if min(low, high) < 0 else "–"
    return f"{shown} ({number(low, digits)}{between}{number(high, digits)})"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
