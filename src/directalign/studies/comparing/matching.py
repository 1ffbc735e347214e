"""Arms side by side where they are equal: each run is read off at one level or budget, and the seeds of an arm become an interval.

An arm is compared where all its seeds can be read off; one that gets there with some seeds only is named with their number.
"""

from __future__ import annotations

from ..running.records import Number, Row, arms_of, of_run, seeds_of
from ..showing.tables import markdown, with_interval
from .statistics import SeedInterval, at_budget, at_level, mean_of
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


Reading = Callable[[list[Row]], Row | None]
"""From the rows of one arm and seed to the row that is compared, None if there is none."""


@dataclass(frozen=True)
class Column:
    """One number of a table, and how it is printed."""

    key: str
    title: str
    digits: int = 3
    percent: bool = False

    def cell(self, rows: Sequence[Row]) -> str:
        """Mean over the rows, one per seed, with its interval; a dash where a row lacks the number."""
        return with_interval(interval_of(rows, self.key), self.digits, self.percent)


@dataclass(frozen=True)
class Matched:
    """`reached`: {arm: a row per seed} of those that all seeds can be read off; `missed`: {arm: how many seeds can}."""

    reached: dict[str, list[Row]]
    missed: dict[str, int]

    def interval(self, arm: str, key: str) -> SeedInterval | None:
        """A number of an arm over its seeds; None for an arm that was not reached."""
        return interval_of(self.reached[arm], key) if arm in self.reached else None


def matched(rows: Sequence[Row], read: Reading) -> Matched:
    """Every arm read off by `read` at every seed."""
    found = {arm: [read(of_run(rows, arm, seed)) for seed in seeds_of(rows, arm)] for arm in arms_of(rows)}
    kept = {arm: [row for row in each if row is not None] for arm, each in found.items()}
    whole = {arm: each for arm, each in kept.items() if len(each) == len(found[arm])}
    return Matched(whole, {arm: len(each) for arm, each in kept.items() if arm not in whole})


def at_common_budget(rows: Sequence[Row], key: str = "call_equivalents") -> tuple[Number, Matched]:
    """The largest amount that every run spent, and all arms there."""
    amount = min(of_run(rows, arm, seed)[-1][key] for arm in arms_of(rows) for seed in seeds_of(rows, arm))
    return amount, matched(rows, lambda run: at_budget(run, key, amount))


def at_same_level(rows: Sequence[Row], key: str, level: Number) -> Matched:
    """All arms where `key` first reaches `level`."""
    return matched(rows, lambda run: at_level(run, key, level))


def summit(rows: Sequence[Row], arm: str, key: str) -> Number:
    """The highest value of `key` that every seed of an arm reaches."""
    return min(max(row[key] for row in of_run(rows, arm, seed)) for seed in seeds_of(rows, arm))


def level_of_most(rows: Sequence[Row], key: str, share: float = 2 / 3) -> Number:
    """The highest level of `key` that at least this share of the arms reaches with every seed."""
    summits = sorted((summit(rows, arm, key) for arm in arms_of(rows)), reverse=True)
    return summits[math.ceil(share * len(summits)) - 1]


def base_row(rows: Sequence[Row]) -> Row:
    """The first measurement: the model before training, the same in every run."""
    return min(rows, key=lambda row: row["step"])


def interval_of(rows: Sequence[Row], key: str) -> SeedInterval | None:
    """Mean of `key` over the rows, one per seed; None where a row lacks it."""
    values = [row.get(key) for row in rows]
    known = [float(value) for value in values if value is not None]
    return mean_of(key, known) if known and len(known) == len(values) else None


def table(found: Matched, titles: Mapping[str, str], columns: Sequence[Column], base: Row | None = None) -> str:
    """One line per arm in the order of `titles`, the base model first if given, those that were not reached left out."""
    lines = [["base model", *(column.cell([base]) for column in columns)]] if base is not None else []
    lines += [[title, *(column.cell(found.reached[arm]) for column in columns)] for arm, title in titles.items() if arm in found.reached]
    return markdown(["method", *(column.title for column in columns)], lines)


def absent(found: Matched, titles: Mapping[str, str], seeds: int) -> str:
    """Who is not in the table, in a sentence; empty if all are."""
    if not found.missed:
        return ""
    return f"Not reached by {', '.join(f'{titles[arm]} ({count} of {seeds} seeds)' for arm, count in found.missed.items())}."
