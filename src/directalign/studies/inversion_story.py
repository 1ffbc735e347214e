"""What the study `inversion` found, in words, tables and figures, all of it from its rows."""

from __future__ import annotations

from .comparing.reading import at_step, before_training, curve, line, of_kind, of_runs, over, steps_of
from .comparing.statistics import SeedInterval
from .comparing.versus import CALLS, Versus, after, at_photo_rate, common_photo_rate, excludes_zero, table, versus
from .running.records import Row, arms_of
from .showing.figures import Panel, curves
from .showing.tables import DASH, markdown, number, with_interval
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path


OURS, THEIRS = "half_cost", "official"
SHOWN = {"photo_rate": "photo rate", "content": "content", "color_drift": "colour drift"}


def tell(rows: list[Row]) -> str:
    """Trainings, the half-cost step against the official one, and the weights measured in the gradient."""
    trained = of_runs(rows)
    return "\n\n".join([_trained(trained), _half_cost(trained), _weights(of_kind(rows, "coefficients"))])


def lengths(rows: Sequence[Row]) -> list[int]:
    """The updates at which arms are compared: a third of the run, if it was measured there, and its end."""
    steps = steps_of(rows, THEIRS)
    return [step for step in (steps[-1] // 3, steps[-1]) if step in steps and step > 0]


def _trained(trained: Sequence[Row]) -> str:
    titles = arms_of(trained)
    parts = []
    for step in lengths(trained):
        lines = [[title, *_numbers(at_step(trained, arm, step))] for arm, title in titles.items()]
        headers = ["step", *SHOWN.values(), "network calls", "seconds"]
        parts.append(f"After {step} updates:\n\n{markdown(headers, lines)}")
    return "\n\n".join(["## Trainings", _best_kept(trained, titles), *parts])


def _numbers(rows: Sequence[Row]) -> list[str]:
    quality = [with_interval(over(rows, key), 3) for key in SHOWN]
    return [*quality, *(number(found["value"] if (found := over(rows, key)) else None, 0) for key in ("call_equivalents", "seconds"))]


def _best_kept(trained: Sequence[Row], titles: dict[str, str]) -> str:
    """Which arm kept the most content to the end, and which the least."""
    last = lengths(trained)[-1]
    content = {arm: found for arm in titles if (found := over(at_step(trained, arm, last), "content")) is not None}
    best, worst = max(content, key=lambda arm: content[arm]["value"]), min(content, key=lambda arm: content[arm]["value"])
    if best == worst:
        return f"After {last} updates content is {with_interval(content[best], 2)} under every step."
    return (
        f"After {last} updates content is highest under “{titles[best]}” ({with_interval(content[best], 2)}) and lowest under “{titles[worst]}” "
        f"({with_interval(content[worst], 2)}); with the official two branches it is {with_interval(content[THEIRS], 2)}."
    )


# --- half the calls ---------------------------------------------------------------------------------------------------


def _half_cost(trained: Sequence[Row]) -> str:
    level = common_photo_rate(trained, [OURS, THEIRS])
    found = [versus(trained, OURS, THEIRS, f"after {step} updates", after(step)) for step in lengths(trained)]
    if level > before_training(trained)["photo_rate"]:
        found.append(versus(trained, OURS, THEIRS, f"at photo rate {level:.2f}", at_photo_rate(level)))
    return "\n\n".join(
        [
            "## Half cost against official",
            f"{_verdict(found[-1])} Differences are half cost minus official, ratios half cost over official, paired by seed. {CALLS}",
            table(found),
        ]
    )


def _verdict(found: Versus) -> str:
    differing = [SHOWN[key] for key, difference in found.differences.items() if excludes_zero(difference)]
    quality = f"the two differ beyond their intervals in {', '.join(differing)}" if differing else "no difference in quality is larger than its interval"
    calls, seconds = (with_interval(found.ratios[key], 2) for key in ("call_equivalents", "seconds"))
    return f"Compared {found.condition}, half cost takes {calls} of the official network calls and {seconds} of the seconds; {quality}."


# --- weights in the gradient ------------------------------------------------------------------------------------------


def _weights(fitted: Sequence[Row]) -> str:
    lines = [_weights_line(fitted, arm, title, point) for arm, title in arms_of(fitted).items() for point in _points(fitted)]
    headers = ["step", "noise level", "absolute, derived", "absolute, measured", "relative, derived", "relative, measured", "explained", "cosine with official"]
    crossing = [
        f"{name} at {number(found, 3)}"
        for name, key in (("the derivation", "derived_absolute"), ("the measured gradient", "absolute"))
        if (found := sign_change(fitted, key))
    ]
    where = (
        f"The absolute weight of the official step changes its sign by {' and by '.join(crossing)}."
        if crossing
        else "The absolute weight of the official step does not change its sign between the measured levels."
    )
    aligned = over([row for row in fitted if row["arm"] == OURS], "alignment")
    same = f"The half-cost gradient points where the official one does up to a cosine of {with_interval(aligned, 3)} (mean over levels and batches)."
    return "\n\n".join(
        ["## Weights in the gradient", f"{where} {same} Intervals are over batches of prompts, on the model before training.", markdown(headers, lines)]
    )


def _points(fitted: Sequence[Row]) -> list[int]:
    return sorted({row["point"] for row in fitted})


def _weights_line(fitted: Sequence[Row], arm: str, title: str, point: int) -> list[str]:
    rows = [row for row in fitted if (row["arm"], row["point"]) == (arm, point)]
    derived = {key: number(rows[0][f"derived_{key}"], 3) if rows else DASH for key in ("absolute", "relative")}
    fit = {key: with_interval(over(rows, key), 3) for key in ("absolute", "relative", "explained", "alignment")}
    return [title, number(rows[0]["sigma"], 3), derived["absolute"], fit["absolute"], derived["relative"], fit["relative"], fit["explained"], fit["alignment"]]


def sign_change(fitted: Sequence[Row], key: str) -> float | None:
    """The noise level where a weight of the official step passes 0, linear between the measured levels; None if it does not."""
    means = _by_level(fitted, THEIRS, key)
    for (low, before), (high, behind) in pairwise(means):
        if before["value"] < 0 <= behind["value"]:
            return low - before["value"] / (behind["value"] - before["value"]) * (high - low)
    return None


def _by_level(fitted: Sequence[Row], arm: str, key: str) -> list[tuple[float, SeedInterval]]:
    """(noise level, mean over batches) of one number, from low to high noise."""
    rows = {point: [row for row in fitted if (row["arm"], row["point"]) == (arm, point)] for point in _points(fitted)}
    return [(each[0]["sigma"], mean) for each in rows.values() if (mean := over(each, key)) is not None]


# --- figures ----------------------------------------------------------------------------------------------------------


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """The trainings as curves, and the weights by noise level beside their derivation."""
    trained, fitted = of_runs(rows), of_kind(rows, "coefficients")
    panels = [_training_panel(trained, key, title) for key, title in SHOWN.items()]
    first = curves(folder / "inversion_curves.png", "What the branches and their ramps do", panels, "Means over seeds.", columns=2)
    weights = [_weight_panel(fitted, "absolute", "weight of (pos + neg)/2"), _weight_panel(fitted, "relative", "weight of pos − neg")]
    note = "Fitted to the weights' gradient on the model before training; bands are intervals over batches."
    return [first, curves(folder / "inversion_weights.png", "How much of an update is absolute, how much relative preference", weights, note, columns=2)]


def _training_panel(trained: Sequence[Row], key: str, title: str) -> Panel:
    lines = [line(arm, curve(trained, arm, key), banded=False) for arm in arms_of(trained)]
    return Panel(title, "updates", title, lines, percent=key != "color_drift")


def _weight_panel(fitted: Sequence[Row], key: str, title: str) -> Panel:
    """Official and half cost, each beside its derivation."""
    lines = []
    for arm in (THEIRS, OURS):
        lines += [line(arm, _by_level(fitted, arm, key)), line(f"{arm}_derived", _by_level(fitted, arm, f"derived_{key}"), banded=False)]
    return Panel(title, "noise level of the landing", title, lines)
