"""Rows read for texts and figures: measurements of runs apart from rows of another `kind`, and means over seeds with their intervals."""

from __future__ import annotations

from ..running.records import Row, of_run, seeds_of
from ..showing.figures import Line
from .statistics import SeedInterval, mean_of
from collections.abc import Sequence


def of_runs(rows: Sequence[Row]) -> list[Row]:
    """The measurements along training runs, which have no `kind`."""
    return [row for row in rows if "kind" not in row]


def of_kind(rows: Sequence[Row], kind: str, **values: object) -> list[Row]:
    """The rows of one kind, those alone that hold the given values."""
    return [row for row in rows if row.get("kind") == kind and all(row[name] == value for name, value in values.items())]


def over(rows: Sequence[Row], key: str) -> SeedInterval | None:
    """Mean of one number over rows, one row per seed, with its interval; None without rows."""
    return mean_of(key, [row[key] for row in rows]) if rows else None


def at_step(rows: Sequence[Row], arm: str, step: int) -> list[Row]:
    """One row per seed, in order of seeds: the arm's measurement after `step` updates; seeds that were not measured there are left out."""
    return [row for seed in seeds_of(rows, arm) for row in of_run(rows, arm, seed) if row["step"] == step]


def before_training(rows: Sequence[Row]) -> Row:
    """The first measurement of the runs: the base model, the same in all of them."""
    return min(rows, key=lambda row: row["step"])


def ends(rows: Sequence[Row], arm: str) -> list[Row]:
    """One row per seed, in order of seeds: the arm's last measurement."""
    return [of_run(rows, arm, seed)[-1] for seed in seeds_of(rows, arm)]


def steps_of(rows: Sequence[Row], arm: str) -> list[int]:
    """The updates after which the arm was measured, rising."""
    return sorted({row["step"] for row in rows if row["arm"] == arm})


def curve(rows: Sequence[Row], arm: str, key: str) -> list[tuple[int, SeedInterval]]:
    """(updates, mean over seeds) of one number along the arm's runs."""
    return [(step, mean_of(key, [row[key] for row in at_step(rows, arm, step)])) for step in steps_of(rows, arm)]


def line(name: str, points: Sequence[tuple[int | float, SeedInterval]], banded: bool = True) -> Line:
    """Means along x as a line of a figure, with their intervals as a band where every one of them is known."""
    means = [mean for _, mean in points]
    low = [end for mean in means if (end := mean["low"]) is not None]
    high = [end for mean in means if (end := mean["high"]) is not None]
    known = banded and len(low) == len(high) == len(means)
    return Line(name, [x for x, _ in points], [mean["value"] for mean in means], low if known else (), high if known else ())
