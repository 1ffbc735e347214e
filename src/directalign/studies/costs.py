"""What a rival pays for a level over what SRPO pays for it, seed by seed; a rival that does not get there gets a lower bound.

The paper gives costs in GPU hours without a common level (arXiv 2509.06942, table 1): FLUX.1-dev, SRPO 5.3, plain
Direct-Align and ReFL 16, DRaFT-LV 24, DanceGRPO 480; its text says 75 times for the last.
"""

from __future__ import annotations

from .comparing.statistics import SeedInterval, at_level, mean_interval, ratio_interval
from .running.records import Row, of_run, seeds_of
from .showing.tables import DASH, number, with_interval
from collections.abc import Sequence
from dataclasses import dataclass


LEVELS = (0.4, 0.6, 0.75)
"""Photo rates at which costs are compared."""
COSTS = {"forward_calls": "forward calls", "call_equivalents": "call equivalents", "seconds": "seconds", "step": "updates"}
PAPER = {"direct_align": (3.0, 3.0), "refl": (3.0, 3.0), "draft_lv": (4.5, 4.5), "flow_grpo": (75.0, 90.0)}
"""GPU hours over SRPO's 5.3, as (least, most) that the paper says."""


@dataclass(frozen=True)
class Ratio:
    """Cost of a rival over that of `ours` at a level: over the seeds on which both get there.

    `beyond` is the least multiple that the rival spent on a seed without getting there, None where it always does;
    `reached` of `seeds` counts the seeds of the interval.
    """

    interval: SeedInterval | None
    beyond: float | None
    reached: int
    seeds: int

    @property
    def always(self) -> bool:
        """Whether every seed got there."""
        return self.seeds > 0 and self.reached == self.seeds

    def written(self) -> str:
        """As in "4.5 (3.9–5.2)", "> 12, not reached", "5.1 (4.0–6.5), 2 of 3 seeds"; a dash where ours does not get there."""
        if self.seeds == 0:
            return DASH
        if self.reached == 0:
            return f"> {_short(self.beyond)}, not reached"
        text = with_interval(self.interval, 1)
        return text if self.always else f"{text}, {self.reached} of {self.seeds} seeds"


def ratio(rows: Sequence[Row], rival: str, ours: str, key: str, level: float) -> Ratio:
    """Cost `key` of a rival over that of `ours` where the photo rate first reaches `level`.

    Only seeds on which `ours` gets there, at some cost, can be compared.
    """
    pairs, beyond, seeds = [], [], 0
    for seed in sorted(set(seeds_of(rows, ours)) & set(seeds_of(rows, rival))):
        mine, run = cost(rows, ours, seed, key, level), of_run(rows, rival, seed)
        if not mine:
            continue
        seeds += 1
        theirs = cost(rows, rival, seed, key, level)
        if theirs is None:
            beyond.append(run[-1][key] / mine)
        elif theirs > 0:
            pairs.append((theirs, mine))
    found = ratio_interval([theirs for theirs, _ in pairs], [mine for _, mine in pairs]) if pairs else None
    return Ratio(found, min(beyond, default=None), len(pairs), seeds)


def cost(rows: Sequence[Row], arm: str, seed: int, key: str, level: float) -> float | None:
    """What a run paid until its photo rate first reached `level`; None if it never did."""
    found = at_level(of_run(rows, arm, seed), "photo_rate", level)
    return None if found is None else float(found[key])


def spent(rows: Sequence[Row], arm: str, key: str, level: float) -> tuple[SeedInterval | None, int, int]:
    """Mean cost of a level over the seeds that reach it, how many those are, and how many seeds there are."""
    found = [cost(rows, arm, seed, key, level) for seed in seeds_of(rows, arm)]
    known = [each for each in found if each is not None]
    return (mean_interval(known) if known else None), len(known), len(found)


def against_paper(found: Ratio, claimed: tuple[float, float]) -> str:
    """How an interval of ratios stands to what the paper says, in words."""
    least, most = claimed
    if found.interval is None:
        return "cannot be judged here" if found.beyond is None or found.beyond < least else "at least what the paper says, for it was not reached"
    low, high = found.interval["low"], found.interval["high"]
    if low is None or high is None:
        return "one seed, no interval"
    if low > most:
        return "more than the paper says"
    if high < least:
        return "less than the paper says"
    return "in agreement with the paper"


def _short(value: float | None) -> str:
    return number(value, 0 if value is not None and value >= 10 else 1)
