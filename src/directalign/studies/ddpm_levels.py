"""SRPO on other windows of levels and other sampling grids, and the closed form on other schedules, told from the ddpm study's rows."""

from __future__ import annotations

from .comparing.reading import ends, of_kind, over
from .comparing.statistics import SeedInterval
from .running.records import Row
from .showing.figures import Column, dots_with_intervals
from .showing.tables import DASH, markdown, number, with_interval
from collections.abc import Sequence
from pathlib import Path


GROUPS = {"windows": "Windows of levels", "grids": "Sampling grids"}


# --- windows and grids ------------------------------------------------------------------------------------------------


def short_table(rows: list[Row], group: str) -> str:
    """SRPO's short runs of one group."""
    lines = [[what, number(value_of(over(ends(rows, arm), "step")), 0), *judged(ends(rows, arm))] for arm, what in _short_arms(rows, group).items()]
    return markdown([group.removesuffix("s"), "updates", "photo rate", "content", "colour drift", "reward"], lines)


def short_verdict(rows: list[Row], group: str) -> str:
    """How far apart the best and the worst of a group are."""
    arms = _short_arms(rows, group)
    rates = {what: over(ends(rows, arm), "photo_rate") for arm, what in arms.items()}
    ranked = sorted(rates, key=lambda what: -(value_of(rates[what]) or 0))
    first, last = ranked[0], ranked[-1]
    contents = {what: mean(ends(rows, arm), "content") for arm, what in arms.items()}
    least = min(contents, key=lambda what: contents[what])
    highest, lowest = (with_interval(rates[what], 0, percent=True) for what in (first, last))
    said = f"The photo rate is highest with {first}, {highest}, and lowest with {last}, {lowest}."
    return f"{said} The least content is left with {least}, {percent(contents[least])}."


def _short_arms(rows: Sequence[Row], group: str) -> dict[str, str]:
    return {row["arm"]: row["what"] for row in rows if row.get("group") == group}


# --- other schedules --------------------------------------------------------------------------------------------------


def schedule_table(rows: list[Row]) -> str:
    """The closed form against diffusers' step on every table of alphas; the largest number over seeds."""
    lines = []
    for (title, prediction), found in _schedules(rows).items():
        span = f"{found[0]['sigma_high']:.4f} to {found[0]['sigma_low']:.4f}"
        digits = [f"{max(row[key] for row in found):.0e}" for key in ("largest", "closed_float32", "stepped_float32", "roundtrip")]
        lines.append([title, prediction, span, *digits])
    return markdown(
        ["schedule", "prediction", "sigma", "largest difference, float64", "closed form, float32", "stepping, float32", "timestep round trip"], lines
    )


def schedule_verdict(rows: list[Row]) -> str:
    """One sentence on how exact, one on precision."""
    found = of_kind(rows, "schedule")
    largest = max(found, key=lambda row: row["largest"])
    better = [row["stepped_float32"] / row["closed_float32"] for row in found]
    return (
        f"Relative to the image, closed form and step differ by {largest['largest']:.0e} at most ({largest['title']}, {largest['prediction']}). "
        f"In float32 the closed form's median error is {min(better):.1f} to {max(better):.1f} times smaller than that of stepping and subtracting."
    )


def _schedules(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in of_kind(rows, "schedule"):
        grouped.setdefault((row["title"], row["prediction"]), []).append(row)
    return grouped


def dots(rows: list[Row], file: Path) -> Path:
    """A dot for every window and grid in photo rate, content and colour drift."""
    arms = {arm: what for group in GROUPS for arm, what in _short_arms(rows, group).items()}
    keys = {"photo rate": ("photo_rate", True), "content": ("content", True), "colour drift": ("color_drift", False)}
    columns = [Column(title, {what: over(ends(rows, arm), key) for arm, what in arms.items()}, percent=rate) for title, (key, rate) in keys.items()]
    return dots_with_intervals(file, "SRPO over other windows and other grids", columns, "Stable Diffusion, epsilon; means and 95 % intervals over seeds.")


# --- words ------------------------------------------------------------------------------------------------------------


def judged(found: Sequence[Row]) -> list[str]:
    """Cells: photo rate, content, colour drift, reward."""
    rates = [with_interval(over(found, key), 0, percent=True) for key in ("photo_rate", "content")]
    return [*rates, with_interval(over(found, "color_drift"), 3), with_interval(over(found, "reward"), 3)]


def percent(share: float) -> str:
    """A share in a sentence."""
    return f"{number(100 * share, 0)} %"


def known(interval: SeedInterval | None) -> SeedInterval:
    """The interval of something that was measured."""
    assert interval is not None
    return interval


def mean(rows: Sequence[Row], key: str) -> float:
    """Mean over seeds of something that was measured."""
    return known(over(rows, key))["value"]


def value_of(interval: SeedInterval | None) -> float | None:
    """The mean alone, None where nothing was measured."""
    return None if interval is None else interval["value"]


def listed(names: Sequence[str]) -> str:
    """Names with semicolons between them, as some have commas; a dash for none."""
    return "; ".join(names) or DASH
