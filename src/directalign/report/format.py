"""Read values of records, and format numbers: suitable digits, percentages, durations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..io.text import isolated
from ..metrics import Metric

Number = float | int
MAX_DIGITS = 6
"""Most significant digits of a number on an axis."""
MAX_LETTERS = 400
"""Longest prompt or label before it is cut."""


def number(value: Any) -> float | None:
    """A finite number, or the "value" of an interval; None for anything else."""
    if isinstance(value, dict):
        value = value.get("value")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < float("inf") else None


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a dict, else {}."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """The value if it is a list, else []."""
    return value if isinstance(value, list) else []


def ends(value: Any) -> tuple[float | None, float | None]:
    """ "low" and "high" of an interval, None where they are missing."""
    return number(mapping(value).get("low")), number(mapping(value).get("high"))


def with_ends(value: Any) -> tuple[float, float, float]:
    """Value, low and high of an interval; its ends are the value where they are missing."""
    middle, (low, high) = number(value) or 0.0, ends(value)
    return middle, middle if low is None else low, middle if high is None else high


def written(value: Number, percent: bool = False, digits: int = 3) -> str:
    """A number with so many significant digits."""
    if percent:
        text = f"{100 * value:.{digits}g}\u00a0%"
    else:
        text = f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−") if "e" not in text else text


def distinct(values: Sequence[Number], percent: bool = False) -> list[str]:
    """Numbers as `written`, with more digits where three would make two of them equal."""
    texts = [written(value, percent) for value in values]
    for digits in range(4, MAX_DIGITS + 1):
        if len(set(texts)) == len(values):
            break
        texts = [written(value, percent, digits) for value in values]
    return texts


def decimals_for(width: Number) -> int:
    """Decimals (0 to 6) that show a step of `width` with two digits: three for 0.013."""
    if width <= 0 or not math.isfinite(width):
        return 3
    return min(6, max(0, 1 - math.floor(math.log10(width))))


def fixed(value: Number, decimals: int, percent: bool = False) -> str:
    """A number with so many decimals, two fewer for a percentage; zero has no sign."""
    text = f"{100 * value:.{max(0, decimals - 2)}f}" if percent else f"{value:.{decimals}f}"
    digits = text.lstrip("-")
    sign = "−" if text.startswith("-") and digits.strip("0.") else ""
    return sign + digits + ("\u00a0%" if percent else "")


def interval(record: Any, percent: bool = False) -> tuple[str, str]:
    """(value, "low–high") of an interval, with the digits that its width justifies.

    The second text is empty without an interval, and for a single image (low = high, n = 1).
    Percentages are whole unless the interval is narrower.
    """
    value, (low, high) = number(record), ends(record)
    if value is None:
        return "–", ""
    if low is None or high is None or (low == high and number(record.get("n")) == 1):
        return (percent_of(value) if percent else written(value)), ""
    decimals = decimals_for((high - low) / 2)
    if percent:
        decimals = max(2, decimals - 1)
    texts = [fixed(end, decimals, percent).removesuffix("\u00a0%") for end in (low, high)]
    dash = " – " if any(text.startswith("−") for text in texts) else "–"
    return fixed(value, decimals, percent), dash.join(texts)


def percent_of(value: Any) -> str:
    """A rate in whole percent."""
    found = number(value)
    return "?" if found is None else f"{100 * found:.0f}\u00a0%".replace("-", "−")


def of_one_image(metric: Metric, numbers: Mapping[str, float]) -> str:
    """A metric of a single image from all its numbers; a share of 0 or 1 as no or yes."""
    value = numbers.get(metric.name)
    if value is None:
        return "–"
    if metric.percent and value in (0.0, 1.0):
        return "yes" if value else "no"
    return percent_of(value) if metric.percent else written(value)


def decimal(value: Any) -> str:
    """A number with three decimals."""
    found = number(value)
    return "–" if found is None else fixed(found, 3)


def format_value(value: Any) -> str:
    """An interval as a percentage, any other number with three decimals."""
    return percent_of(value) if isinstance(value, dict) else decimal(value)


def span(value: Any) -> str:
    """The ends of a rate's interval in percent; "" without an interval."""
    low, high = ends(value)
    return "" if low is None or high is None else f"{100 * low:.0f}–{100 * high:.0f}"


def seconds(value: Any) -> str:
    """A duration in seconds, minutes or hours."""
    found = number(value)
    if found is None:
        return "–"
    if found < 100:
        return f"{found:.1f}\u00a0s" if found < 10 else f"{found:.0f}\u00a0s"
    return f"{found / 60:.0f}\u00a0min" if found < 6000 else f"{found / 3600:.1f}\u00a0h"


def p_value(p: Any) -> str:
    """A p-value: "p = .03", "p < .001"."""
    found = number(p)
    if found is None:
        return ""
    if found < 0.001:
        return "p < .001"
    digits = 2 if found >= 0.01 else 3
    return "p = 1" if found >= 0.995 else f"p = {found:.{digits}f}".replace("= 0.", "= .")


def counted(count: int, thing: str, things: str = "") -> str:
    """ "1 prompt", "3 prompts", "12,000 prompts"."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def cut(text: Any, most: int = MAX_LETTERS) -> str:
    """An outside text for a page, with an ellipsis if it is longer than `most`, `isolated`."""
    found = str(text)
    return isolated(found if len(found) <= most else found[: most - 1].rstrip() + "…")


def lower_first(text: str) -> str:
    """A text with a small first letter."""
    return text[:1].lower() + text[1:]
