"""Two arms against each other, seed by seed: what one gives more than the other, and what it costs, where both have come equally far."""

from __future__ import annotations

from ..running.records import Row, of_run, seeds_of
from ..showing.tables import DASH, markdown, number, with_interval
from .statistics import SeedInterval, at_budget, at_level, paired_over_seeds, ratio_interval
from collections.abc import Callable, Sequence
from dataclasses import dataclass


QUALITY = {"photo_rate": "photo rate", "content": "content", "color_drift": "colour drift"}
COSTS = {"call_equivalents": "network calls", "seconds": "seconds"}

CALLS = "A sample through the network is one call, and counts three where a gradient went back through it."

Pick = Callable[[Sequence[Row]], Row | None]
"""From a run's measurements to the one that is compared, or None where the run has none such."""


@dataclass(frozen=True)
class Versus:
    """One comparison: differences `ours − theirs` in quality, ratios `ours / theirs` in cost, over the seeds that both have."""

    condition: str
    differences: dict[str, SeedInterval | None]
    ratios: dict[str, SeedInterval | None]
    seeds: int


def after(updates: int) -> Pick:
    """The run after so many updates."""
    return lambda run: at_budget(run, "step", updates)


def at_photo_rate(level: float) -> Pick:
    """The run where its photo rate first reaches `level`."""
    return lambda run: at_level(run, "photo_rate", level)


def common_photo_rate(rows: Sequence[Row], arms: Sequence[str]) -> float:
    """The highest photo rate that every run of these arms reaches at some time."""
    return min(max(row["photo_rate"] for row in of_run(rows, arm, seed)) for arm in arms for seed in seeds_of(rows, arm))


def versus(rows: Sequence[Row], ours: str, theirs: str, condition: str, pick: Pick) -> Versus:
    """Compare two arms where `pick` finds them; a seed that one of them lacks there is left out."""
    both = [seed for seed in seeds_of(rows, ours) if seed in seeds_of(rows, theirs)]
    picked = [(pick(of_run(rows, ours, seed)), pick(of_run(rows, theirs, seed))) for seed in both]
    pairs = [(mine, other) for mine, other in picked if mine is not None and other is not None]
    differences = {key: _over(pairs, key, paired_over_seeds) for key in QUALITY}
    return Versus(condition, differences, {key: _ratio(pairs, key) for key in COSTS}, len(pairs))


def table(found: Sequence[Versus]) -> str:
    """Comparisons as Markdown, one per line."""
    headers = ["compared", *QUALITY.values(), *(f"{name}, ratio" for name in COSTS.values()), "seeds"]
    return markdown(headers, [_line(each) for each in found])


def _line(found: Versus) -> list[str]:
    differences = [signed(found.differences[key]) for key in QUALITY]
    return [found.condition, *differences, *(with_interval(found.ratios[key], 2) for key in COSTS), number(found.seeds, 0)]


def signed(difference: SeedInterval | None, digits: int = 3) -> str:
    """A difference with its sign, also when it is positive."""
    if difference is None:
        return DASH
    return ("+" if difference["value"] > 0 else "") + with_interval(difference, digits)


def excludes_zero(difference: SeedInterval | None) -> bool:
    """Whether the interval is known and lies on one side of 0."""
    if difference is None or difference["low"] is None or difference["high"] is None:
        return False
    return difference["low"] > 0 or difference["high"] < 0


def _over(pairs: Sequence[tuple[Row, Row]], key: str, interval: Callable[[list[float], list[float]], SeedInterval]) -> SeedInterval | None:
    return interval([mine[key] for mine, _ in pairs], [other[key] for _, other in pairs]) if pairs else None


def _ratio(pairs: Sequence[tuple[Row, Row]], key: str) -> SeedInterval | None:
    """None where a run is picked before it cost anything."""
    spent = all(row[key] > 0 for pair in pairs for row in pair)
    return _over(pairs, key, ratio_interval) if spent else None
