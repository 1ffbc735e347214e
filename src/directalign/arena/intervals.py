"""How sure a number is when several annotators judge one item: whole items are resampled, never single answers.

Answers about one picture are alike, so thirty answers about ten pictures know little more than ten. Every interval is 95 %, and the draws
are seeded: the same records give the same page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

Z_95 = 1.959963984540054
DRAWS = 2000
DEFINED = 0.95
"""Share of resamples on which a number must be defined for its interval to be given."""
TELLING = 20
"""Items with a hit, and items without, from which the resampled items alone say how alike the answers on one item are."""

PerItem = Float[np.ndarray, " m"]


@dataclass(frozen=True)
class Interval:
    """A number between the two ends of its 95 % interval, from `n` answers."""

    value: float
    low: float
    high: float
    n: int


@lru_cache(maxsize=4)
def resamples(items: int, draws: int = DRAWS) -> Float[np.ndarray, "r m"]:
    """How often each of m items is drawn in each of r resamples of m items with replacement; not to be written to."""
    counts = np.random.default_rng(0).multinomial(items, np.full(items, 1 / items), size=draws).astype(float)
    counts.flags.writeable = False
    return counts


def rate(hits: PerItem, answers: PerItem) -> Interval:
    """Σ hits / Σ answers, where an item's `hits` (halves allowed) are some of its `answers` (each > 0).

    Wilson's interval for as many independent answers as would be as uncertain as the resampled items are (the effective number of
    Kish 1965), never more than there are. One item has the interval from 0 to 1.
    """
    items, total = len(answers), float(answers.sum())
    value = float(hits.sum()) / total
    if items == 1:
        return Interval(value, 0.0, 1.0, round(total))
    low, high = wilson(value, total / _design_effect(hits, answers), t_95(items - 1))
    return Interval(value, low, high, round(total))


def _design_effect(hits: PerItem, answers: PerItem) -> float:
    """Answers that are worth one independent answer, 1 or more.

    A rare hit is seen on too few items to tell whether it comes alone or with others; then the answers on one item are taken for one
    answer, the less so the more items have a hit, and (of a frequent one) lack one.
    """
    items, total = len(answers), float(answers.sum())
    spread = float(hits.sum()) / total * (1 - float(hits.sum()) / total)
    drawn = resamples(items)
    variance = float(np.var(drawn @ hits / (drawn @ answers))) * items / (items - 1)
    seen = max(1.0, variance * total / spread) if spread > 0 else 1.0
    trust = min(1.0, min(int((hits > 0).sum()), int((hits < answers).sum())) / TELLING)
    return trust * seen + (1 - trust) * max(seen, total / items)


def wilson(value: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """Ends of Wilson's score interval (Wilson 1927) of a rate in [0, 1] from n > 0 answers; n need not be whole."""
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))


def percentile(value: float, drawn: Float[np.ndarray, " r"], n: int) -> Interval | None:
    """Percentile bootstrap around `value`; None where the number is not defined (nan) on too many resamples."""
    known = drawn[np.isfinite(drawn)]
    if len(known) < DEFINED * len(drawn):
        return None
    low, high = np.quantile(known, [0.025, 0.975]).tolist()
    return Interval(value, low, high, n)


def t_95(freedom: int) -> float:
    """t with P(|T| ≤ t) = 0.95 for 1 or more degrees of freedom (Abramowitz and Stegun 26.7.5; within 1 % from 3 degrees on)."""
    z = Z_95
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def sign_test(wins: int, losses: int) -> float:
    """p of the two-sided exact sign test: how often a fair coin would split at least as unevenly. 1 without any win or loss."""
    n, fewer = wins + losses, min(wins, losses)
    tail, term = 0, 1
    for k in range(fewer + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def holm(chances: Sequence[float]) -> list[float]:
    """p values corrected for asking as many questions at once as there are p values (Holm 1979), in the order given."""
    corrected, largest = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda place: chances[place])):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[place]))
        corrected[place] = largest
    return corrected
