"""How sure a study is: intervals over seeds (Student's t, 95 %), and runs read off where they have come or cost equally far.

Between measurements a run is taken as a straight line. One seed has no interval: its ends are None, never the value itself.
"""

from __future__ import annotations

from ...stats import t_interval
from ..running.records import Number, Row
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypedDict


RATES = ("photo_rate", "content", "share", "lost", "delivered", "off_topic_style_kept", "off_topic_content")
"""Numbers that are shares of images: none lies outside [0, 1], and so no end of an interval does."""


class SeedInterval(TypedDict):
    """A number between the ends of its 95 % interval over `n` seeds; `low` and `high` are None for one seed."""

    value: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[Number]) -> SeedInterval:
    """Mean of one number per seed, with value ± t·s/√n (Student 1908).

    Raises: ValueError without any value.
    """
    found = t_interval(values)
    one = found.n == 1
    return SeedInterval(value=found.value, low=None if one else found.low, high=None if one else found.high, n=found.n)


def mean_of(key: str, values: Sequence[Number]) -> SeedInterval:
    """`mean_interval` of a named number; that of a rate ends at 0 and at 1."""
    found = mean_interval(values)
    if found["low"] is None or found["high"] is None or not key.startswith((*RATES, "style_")):
        return found
    return SeedInterval(value=found["value"], low=max(0.0, found["low"]), high=min(1.0, found["high"]), n=found["n"])


def paired_over_seeds(a: Sequence[Number], b: Sequence[Number]) -> SeedInterval:
    """Mean of `a − b`, where a[i] and b[i] come from the same seed; the interval is that of the differences."""
    return mean_interval([ours - theirs for ours, theirs in _pairs(a, b)])


def ratio_interval(a: Sequence[Number], b: Sequence[Number]) -> SeedInterval:
    """Geometric mean of `a / b` over seeds: the interval of the mean log-ratio, taken back from the logarithm.

    Raises: ValueError for a number that is not positive.
    """
    if min(*a, *b) <= 0:
        raise ValueError(f"a ratio over seeds needs positive numbers: got {list(a)} and {list(b)}")
    logs = mean_interval([math.log(ours / theirs) for ours, theirs in _pairs(a, b)])
    ends = [None if end is None else math.exp(end) for end in (logs["low"], logs["high"])]
    return SeedInterval(value=math.exp(logs["value"]), low=ends[0], high=ends[1], n=logs["n"])


def _pairs(a: Sequence[Number], b: Sequence[Number]) -> list[tuple[Number, Number]]:
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values are not pairs: give one of each per seed")
    return list(zip(a, b, strict=True))


# --- runs where they are equal ----------------------------------------------------------------------------------------


def at_level(rows: Sequence[Row], key: str, level: Number) -> Row | None:
    """The run (rows of one arm and seed) where `key` first reaches `level` from below; None if it never does.

    Numbers that both neighbouring measurements have are linear between them; what both agree on is kept; the rest is
    left out. A run that begins at or above the level is its first row.
    """
    known = [row for row in sorted(rows, key=lambda row: row["step"]) if _is_number(row.get(key))]
    if known and known[0][key] >= level:
        return dict(known[0])
    for before, after in pairwise(known):
        if before[key] < level <= after[key]:
            return _between(before, after, (level - before[key]) / (after[key] - before[key]))
    return None


def at_budget(rows: Sequence[Row], key: str, amount: Number) -> Row | None:
    """The run where it has spent `amount` of a key that never falls (seconds, call_equivalents, step); None if it ended before.

    Raises: ValueError where the key falls.
    """
    spent = [row[key] for row in sorted(rows, key=lambda row: row["step"])]
    if any(later < earlier for earlier, later in pairwise(spent)):
        raise ValueError(f"{key} falls during the run: a budget needs a key that only rises")
    return at_level(rows, key, amount)


def _between(before: Row, after: Row, share: Number) -> Row:
    """The row at `share` of the way from one measurement to the next."""
    row: Row = {}
    for name in before.keys() & after.keys():
        here, there = before[name], after[name]
        if here == there:
            row[name] = here
        elif _is_number(here) and _is_number(there):
            row[name] = here + share * (there - here)
    return {name: row[name] for name in before if name in row}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
