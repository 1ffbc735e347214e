"""Numbers as people write them: as many digits as they deserve, rates in percent, a true minus sign, durations in words."""

from __future__ import annotations

from ..metrics import Metric
from .files import number
import math
from collections.abc import Sequence
from typing import Any


Number = float | int
MOST_DIGITS = 6
"""Digits of a number on an axis, for which there is room left of it."""
MOST_LETTERS = 400
"""A prompt or a label is cut after so many letters."""


def written(value: Number, percent: bool = False, digits: int = 3) -> str:
    """Three significant digits or as many as asked for."""
    text = (
        f"{100 * value:.{digits}g}\u00a0%"
        if percent
        else f"{value:.{digits}g}"
        if abs(value) < 1000
        else f"{value:,.0f}"
    )
    return text.replace("-", "−") if "e" not in text else text


def of_one_image(metric: Metric, value: Number) -> str:
    """A metric of a single image; of a share the yes or no that it is."""
    if metric.percent and value in (0.0, 1.0):
        return "yes" if value else "no"
    return percent_of(value) if metric.percent else written(value)


def told_apart(values: Sequence[Number], percent: bool = False) -> list[str]:
    """Numbers as `written`, with more digits where three would make two of them look alike."""
    texts = [written(value, percent) for value in values]
    for digits in range(4, MOST_DIGITS + 1):
        if len(set(texts)) == len(values):
            break
        texts = [written(value, percent, digits) for value in values]
    return texts


def decimals_for(width: Number) -> int:
    """Decimals that show a step of `width` with two digits: 0.013 needs three; never fewer than none, nor more than six."""
    return (
        3
        if width <= 0 or not math.isfinite(width)
        else min(6, max(0, 1 - math.floor(math.log10(width))))
    )


def fixed(value: Number, decimals: int, percent: bool = False, sign: bool = False) -> str:
    """A number with so many decimals; a rate in percent, which takes two of them away; zero has no sign."""
    text = f"{100 * value:.{max(0, decimals - 2)}f}" if percent else f"{value:.{decimals}f}"
    bare = text.lstrip("-")
    zero = not bare.strip("0.")
    front = "" if zero else "−" if text.startswith("-") else "+" if sign else ""
    return front + bare + ("\u00a0%" if percent else "")


def interval(told: Any, percent: bool = False) -> tuple[str, str]:
    """(value, "low – high") of {"value", "low", "high"}, with the digits that the interval's width deserves; "" for what is not there.

    A rate is in whole points, unless its interval is narrower than some. A single image has no interval, though its number is recorded as both ends.
    """
    value = number(told)
    if value is None:
        return "–", ""
    low, high = (
        (number(told.get(end)) for end in ("low", "high"))
        if isinstance(told, dict)
        else (None, None)
    )
    if low is None or high is None or (low == high and number(told.get("n")) == 1):
        return (percent_of(value) if percent else written(value)), ""
    wanted = decimals_for((high - low) / 2)
    decimals = max(2, wanted - 1) if percent else wanted
    ends = [fixed(end, decimals, percent).removesuffix("\u00a0%") for end in (low, high)]
    return fixed(value, decimals, percent), " – ".join(ends) if any(
        end.startswith("−") for end in ends
    ) else "–".join(ends)


def percent_of(value: Any) -> str:
    """A rate in whole points."""
    found = number(value)
    return "?" if found is None else f"{100 * found:.0f}\u00a0%".replace("-", "−")


def decimal(value: Any) -> str:
    """Three decimals."""
    found = number(value)
    return "–" if found is None else fixed(found, 3)


def shown(value: Any) -> str:
    """A rate as a percentage, any other number with three decimals."""
    return percent_of(value) if isinstance(value, dict) else decimal(value)


def span(value: Any) -> str:
    """The 95 % interval of a rate, in points; empty for a number without one."""
    if (
        not isinstance(value, dict)
        or number(value.get("low")) is None
        or number(value.get("high")) is None
    ):
        return ""
    return f"{100 * value['low']:.0f}–{100 * value['high']:.0f}"


def seconds(value: Any) -> str:
    """A duration for people."""
    found = number(value)
    if found is None:
        return "–"
    if found < 100:
        return f"{found:.1f}\u00a0s" if found < 10 else f"{found:.0f}\u00a0s"
    return f"{found / 60:.0f}\u00a0min" if found < 6000 else f"{found / 3600:.1f}\u00a0h"


def chance(p: Any) -> str:
    """A p-value: "p = .03", "p < .001"."""
    found = number(p)
    if found is None:
        return ""
    if found < 0.001:
        return "p < .001"
    return (
        "p = 1"
        if found >= 0.995
        else f"p = {found:.{2 if found >= 0.01 else 3}f}".replace("= 0.", "= .")
    )


def counted(count: int, thing: str, things: str = "") -> str:
    """ "1 prompt", "3 prompts", "12,000 prompts"."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def cut(text: Any, most: int = MOST_LETTERS) -> str:
    """A text that ends with an ellipsis where it is longer than `most`."""
    told = str(text)
    return told if len(told) <= most else told[: most - 1].rstrip() + "…"
