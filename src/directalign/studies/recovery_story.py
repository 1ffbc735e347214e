"""The recovery study told from its rows: errors by level, measured against predicted ratios, and where the picture is lost."""

from __future__ import annotations

from .comparing.reading import over
from .comparing.statistics import SeedInterval
from .recovery_collapse import FRESH, JUMP, OWN, SEEN, collapse, collapse_table, kept, of, sigmas_of
from .running.records import Row, arms_of, seeds_of
from .showing.figures import Line, Panel, curves
from .showing.tables import markdown, number, with_interval
from collections.abc import Iterable
from pathlib import Path


DRAWN = ("agreement", "style", "sharpness")
"""What the picture shows of `recovery_collapse.SEEN`."""


def tell(rows: list[Row]) -> str:
    """Markdown: the formula against the measurement, errors by level for every model, and where reward and judge lose the picture."""
    parts = ["## The formula", formula(rows), "## Errors by noise level", legend(rows)]
    for arm, title in arms_of(rows).items():
        parts += [f"### {title}", error_table(rows, arm), upward(rows, arm)]
    return "\n\n".join([*parts, "## Where the picture is lost", collapse_table(rows), collapse(rows)])


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """`recovery_errors.png`: error in latents by level; `recovery_scores.png`: the reward and the judge on both images."""
    arms = arms_of(rows)
    note = "Error (RMS, latents) of the one-step guess and of the image recovered after a jump down; the image's own noise, means over seeds."
    errors = [Panel(title, "sigma", "error", _error_lines(rows, arm), log_y=True, named=arm == list(arms)[-1]) for arm, title in arms.items()]
    scores = [_seen_panel(rows, arm, what, named=arm == list(arms)[-1]) for what in DRAWN for arm in arms]
    seen = f"What is left of the clean images' value in the one-step guess and in the recovered image; jump {JUMP}, fresh noise."
    return [
        curves(folder / "recovery_errors.png", "The recovered image stays near the clean one where a one-step guess does not", errors, note, columns=len(arms)),
        curves(folder / "recovery_scores.png", "What reward and judge still see", scores, seen, columns=len(arms)),
    ]


# --- the formula ------------------------------------------------------------------------------------------------------


def deviations(rows: Iterable[Row]) -> list[tuple[float, Row]]:
    """(|measured ratio / predicted ratio − 1|, row) of every recovered image, the largest first."""
    found = [(abs(row["ratio"] / row["predicted"] - 1), row) for row in rows if row["image"] == "recovered"]
    return sorted(found, key=lambda pair: -pair[0])


def formula(rows: list[Row]) -> str:
    """How far the measured ratio of errors is from the closed form's."""
    table = []
    for arm, title in arms_of(rows).items():
        found = deviations(row for row in rows if row["arm"] == arm)
        worst, where = found[0]
        place = f"sigma {where['sigma']:g}, jump {number(where['jump'], 3)}"
        table.append([title, str(len(found)), _small(found[len(found) // 2][0]), _small(worst), place])
    said = (
        "The error of the recovered image over that of the one-step guess, measured by stepping in float32 and subtracting the known noise, against "
        "|1 − sigma_to·alpha_from / (alpha_to·sigma_from)|; on flow that is |sigma_from − sigma_to| / ((1 − sigma_to)·sigma_from)."
    )
    worst = max(found for found, _ in deviations(rows))
    verdict = f"Over all models, levels and jumps the two differ by {_small(worst)} at most, relative: what is left is the rounding of the step."
    return f"{said}\n\n{markdown(['model', 'cases', 'median difference', 'largest', 'where'], table)}\n\n{verdict}"


def upward(rows: list[Row], arm: str) -> str:
    """Where a jump makes the recovered image worse than no recovery at all."""
    cases = {(row["sigma"], row["jump"]) for row in rows if row["arm"] == arm and row["image"] == "recovered" and row["predicted"] > 1}
    every = {(row["sigma"], row["jump"]) for row in rows if row["arm"] == arm and row["image"] == "recovered"}
    if not cases:
        return f"In none of the {len(every)} cases is the recovered image farther from the clean one than the one-step guess."
    up = [case for case in cases if case[1] < 0]
    sigmas = [sigma for sigma, _ in cases]
    return (
        f"In {len(cases)} of the {len(every)} pairs of level and jump the recovered image is farther from the clean one than the one-step guess. "
        f"{len(up)} of them are jumps up; they begin at sigma {min(sigmas):g}, and the shortest such jump is {min(abs(jump) for _, jump in cases):g}."
    )


# --- errors -----------------------------------------------------------------------------------------------------------


def legend(rows: list[Row]) -> str:
    """What the columns are."""
    return (
        f"Root mean square errors with the noise that the image was sampled from, jump {JUMP} down: mean (95 % interval) over seeds ({len(seeds_of(rows))}). "
        "Latents are about of unit size, pixels lie in [0, 1]. The last column is the one-step guess's error in latents with fresh noise."
    )


def error_table(rows: list[Row], arm: str) -> str:
    """A line per level of one model."""
    headers = ["sigma", "guess, latents", "recovered, latents", "guess, pixels", "recovered, pixels", "ratio", "formula", "guess, fresh noise"]
    lines = []
    for sigma in sigmas_of(rows, arm):
        guess, recovered = (of(rows, arm, image, OWN, sigma) for image in ("x0_hat", "recovered"))
        cells = [over(found, key) for key in ("latents_rmse", "pixels_rmse") for found in (guess, recovered)]
        ratio, expected, fresh = over(recovered, "ratio"), over(recovered, "predicted"), over(of(rows, arm, "x0_hat", FRESH, sigma), "latents_rmse")
        shown = [with_interval(cell, 3) for cell in cells]
        lines.append([f"{sigma:g}", *shown, number(_value(ratio), 4), number(_value(expected), 4), with_interval(fresh, 3)])
    return markdown(headers, lines)


# --- pictures ---------------------------------------------------------------------------------------------------------


def _error_lines(rows: list[Row], arm: str) -> list[Line]:
    jumps = sorted({row["jump"] for row in rows if row["arm"] == arm and row.get("jump", 0) > 0})
    chosen = [("x0_hat", 0.0, "guess"), *(("recovered", jump, f"jump {jump:g}") for jump in jumps)]
    lines = []
    for image, jump, name in chosen:
        known = [(sigma, over(of(rows, arm, image, OWN, sigma, jump), "latents_rmse")) for sigma in sigmas_of(rows, arm)]
        points = [(sigma, found["value"]) for sigma, found in known if found is not None]
        lines.append(Line(name, [sigma for sigma, _ in points], [error for _, error in points]))
    return lines


def _seen_panel(rows: list[Row], arm: str, what: str, named: bool) -> Panel:
    points = {name: kept(rows, arm, image, FRESH, what) for image, name in {"x0_hat": "guess", "recovered": "recovered"}.items()}
    lines = [Line(name, [sigma for sigma, _ in found], [share for _, share in found]) for name, found in points.items()]
    return Panel(arms_of(rows)[arm], "sigma", SEEN[what], lines, percent=True, named=named)


def _value(interval: SeedInterval | None) -> float | None:
    return None if interval is None else interval["value"]


def _small(value: float) -> str:
    return f"{value:.1e}"
