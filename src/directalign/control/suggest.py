"""From measured words to a setting: which phrases, which ramp, which tolerance, and the pieces of a recipe that say so.

Phrases: the pair that tells wanted from unwanted best, then one phrase at a time as long as that grows. Ramp: the absolute weight that holds
the bare prompt's score at the wanted images (`geometry.holding`), nothing at the low-noise end, twice as much at the high-noise end, where
content is decided; biases are painted late. Tolerance: with that weight mu the anchor comes to rest at mu·tolerance below its reference,
which shall be `AT_REST` of what content is worth in the plain score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from ..methods.objective_math import from_absolute_relative
from .words import KEEPS, OVERLAP, PAYS, Pair, Table, Word

AT_REST = 0.01
"""Calibrated on the embedded world, where tolerances from 0.02 to 0.05 are known to work: 0.01 gives 0.03 there."""
FRACTION = 0.25
"""Part of the best phrase's size that a phrase must have to be taken."""
KEPT = 0.98
"""A further phrase is taken where the size of the gap keeps this factor: several words cover more than one."""
MOST = 6
"""Phrases a side."""


@dataclass(frozen=True)
class Suggestion:
    """Phrases and what goes with them.

    `mu`: absolute weight per relative one, a mean over the window; `tolerance` in units of the score; `pays`: what each probe is paid under that
    ramp, as a share of what the wanted images are paid above the unwanted. None where the reward's texts cannot be read apart.
    """

    pair: Pair
    mu: float | None
    tolerance: float | None
    pays: dict[str, float]


def suggest(table: Table, positive: Sequence[Word], negative: Sequence[Word]) -> Suggestion | None:
    """The best words of both lists with ramp and tolerance; None where either has no fit word, or no pair tells the images apart."""
    chosen = choose(table, fit(positive, 1), fit(negative, -1))
    return None if chosen is None else setting(table, *chosen)


def setting(table: Table, positive: Sequence[str], negative: Sequence[str]) -> Suggestion:
    """Ramp and tolerance for given phrases."""
    pair = table.pair(positive, negative)
    if table.texts is None:
        return Suggestion(pair, None, None, {})
    mu = table.texts.holding(positive, negative)
    return Suggestion(pair, mu, tolerance(table.of("").content, mu), pays(table, pair, mu))


def fit(words: Sequence[Word], sign: int) -> list[str]:
    """Phrases with a clear lift to the right side (`sign`), not a small part of the best one's, that leave prompts whole and content be."""
    clear = [word for word in words if word.lift.is_clear and sign * word.lift.value > 0 and word.cut == 0 and (word.content is None or word.content >= KEEPS)]
    best = max((abs(word.lift.size) for word in clear), default=0.0)
    return [word.phrase for word in sorted(clear, key=lambda word: -abs(word.lift.size)) if abs(word.lift.size) >= FRACTION * best]


def choose(table: Table, positive: Sequence[str], negative: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """Greedy: of the pairs whose texts lie apart that with the largest size of gap, then whichever phrase leaves it largest, on either side."""
    pairs = [([pos], [neg]) for pos in positive for neg in negative if table.texts is None or table.texts.cosine([pos], [neg]) <= OVERLAP]
    best = max(pairs, key=lambda pair: table.gap(*pair).size, default=None)
    if best is None or table.gap(*best).low <= 0:
        return None
    while True:
        further = [(best[0] + [word], best[1]) for word in positive if word not in best[0] and len(best[0]) < MOST]
        further += [(best[0], best[1] + [word]) for word in negative if word not in best[1] and len(best[1]) < MOST]
        better = max(further, key=lambda pair: table.gap(*pair).size, default=None)
        if better is None or table.gap(*better).size < KEPT * table.gap(*best).size:
            return best
        best = better


def tolerance(content: float | None, mu: float) -> float | None:
    """`AT_REST`·content / mu, two digits; None without captions to tell apart, or where nothing needs to be held."""
    if content is None or content <= 0 or mu <= 0:
        return None
    return rounded(AT_REST * content / mu)


def pays(table: Table, pair: Pair, mu: float) -> dict[str, float]:
    """Per probe: (mu·absolute + relative) over the same of wanted minus unwanted images."""
    pos, neg = table.sides(pair.positive, pair.negative)
    absolute = (pos.wanted.mean() + neg.wanted.mean() - pos.unwanted.mean() - neg.unwanted.mean()).item() / 2
    whole = mu * absolute + pair.gap.value
    return {name: (mu * probe.absolute + probe.relative) / whole for name, probe in pair.probes.items()}


def suggestion_warnings(found: Suggestion) -> list[str]:
    """What to know before the ramp is used."""
    paid = {name: share for name, share in found.pays.items() if share > PAYS}
    return [f"the ramp pays {100 * share:.0f} % of the wanted style for {name}: prefer the anchored form" for name, share in paid.items()]


# --- pieces of a recipe -------------------------------------------------------------------------------------------------


def ramp(mu: float) -> dict[str, dict[str, float]]:
    """k_pos and k_neg of a branch, nu = 1 throughout, mu rising from 0 at low noise to twice its mean at high noise."""
    ends = {"low_noise": from_absolute_relative(0.0, 1.0), "high_noise": from_absolute_relative(2 * mu, 1.0)}
    return {name: {end: round(float(pair[place]), 3) + 0.0 for end, pair in ends.items()} for place, name in enumerate(("k_pos", "k_neg"))}


def relative_section(found: Suggestion) -> dict[str, Any] | None:
    """The `method` section of the relative form: words and ramps, the same in both branches."""
    if found.mu is None:
        return None
    return {"form": "relative", "words": _words(found.pair, "cycle"), "denoise": ramp(found.mu), "inversion": ramp(found.mu)}


def anchored_section(found: Suggestion) -> dict[str, Any] | None:
    """The `method` section of the anchored form: one branch, all words at every update."""
    if found.tolerance is None:
        return None
    return {"form": "anchored", "branches": "denoise", "words": _words(found.pair, "average"), "anchor": {"tolerance": found.tolerance}}


def _words(pair: Pair, order: str) -> Mapping[str, Any]:
    return {"positive": list(pair.positive), "negative": list(pair.negative), "order": order}


def rounded(value: float, digits: int = 2) -> float:
    """To so many significant digits."""
    return round(value, digits - 1 - floor(log10(abs(value))))
