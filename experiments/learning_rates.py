"""The learning rate of every method, chosen by one rule for `table1`.

All methods have the same rates to choose from and the same NFE (policy gradients three times as
many). The seed is none of those that the methods are compared on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from . import plots
from .plots import title_of
from .rows import Row, Rows
from .runner import ARMS, Arm, Budget, allowance, run_arms, small_batches, within
from .tables import Table

RATES = (3e-5, 1e-4, 3e-4)
SEED = 100
KEPT = 0.95
"""Share of the base model's content that a measurement must keep."""
FULL = Budget(calls=4_000, measurements=4, num_samples=64, diversity_prompts=0)
QUICK = Budget(calls=32, measurements=1, num_samples=8, diversity_prompts=0, probed=1)
QUICK_ARMS = ("srpo", "refl")


def measure(out: Path, quick: bool) -> list[Row]:
    """Train every method with every rate; rows have a `method`. Quick: two methods."""
    budget = QUICK if quick else FULL
    methods = small_batches([arm for arm in ARMS if not quick or arm.name in QUICK_ARMS], quick)
    priced = [within(allowance(arm, budget), arm, out) for arm in methods]
    method = {with_rate(arm, rate).name: arm.name for arm in priced for rate in RATES}
    arms = [with_rate(arm, rate) for arm in priced for rate in RATES]
    rows = run_arms("learning_rates", arms, (SEED,), out)
    return [row | {"method": method[row["arm"]]} for row in rows]


def with_rate(arm: Arm, rate: float) -> Arm:
    """The arm under a learning rate, which becomes part of its name."""
    named = replace(arm, name=f"{arm.name}-lr{rate:.0e}", title=f"{arm.title}, {rate:.0e}")
    return named.plus(f"train.learning_rate={rate}")


def chosen(rows: Rows) -> dict[str, float]:
    """{method: learning rate}, see `choice`."""
    return {method: choice(rows, method)[0]["learning_rate"] for method in _methods(rows)}


def choice(rows: Rows, method: str) -> tuple[Row, bool]:
    """The measurement that decides a method's rate, and whether it kept the content.

    The highest photo rate among measurements with `KEPT` of the base model's content; where there
    is none, the highest product of photo rate and content. Of equal ones the first.
    """
    trained = [row for row in rows.where(method=method) if row["step"] > 0]
    kept = [row for row in trained if row["content"] >= KEPT * rows.base["content"]]
    if kept:
        return max(kept, key=lambda row: row["photo_rate"]), True
    return max(trained, key=lambda row: row["photo_rate"] * row["content"]), False


def _methods(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def tables(rows: Rows) -> dict[str, Table]:
    rates = sorted({row["learning_rate"] for row in rows})
    lines = []
    for method, picked in chosen(rows).items():
        cells = []
        for rate in rates:
            of_rate = Rows(r for r in rows if r["step"] == 0 or r["learning_rate"] == rate)
            row, kept = choice(of_rate, method)
            photo, content = (f"{100 * row[key]:.0f} %" for key in ("photo_rate", "content"))
            text = f"photo {photo}, content {content}, update {row['step']}"
            cells.append(text if kept else f"({text})")
        lines.append([title_of(method), *cells, f"{picked:.0e}"])
    return {"rates": Table(["method", *(f"{rate:.0e}" for rate in rates), "chosen"], lines)}


def draw(rows: Rows, folder: Path) -> list[Path]:
    panels = []
    for method in _methods(rows):
        lines = []
        for rate in sorted({row["learning_rate"] for row in rows}):
            run = rows.where(method=method, learning_rate=rate)
            x, y = ([row[key] for row in run] for key in ("call_equivalents", "photo_rate"))
            lines.append(plots.Line(f"{rate:.0e}", x, y))
        panel = plots.Panel(title_of(method), "NFE equivalents", "photo rate", lines)
        panels.append(replace(panel, percent=True, span_y=(0, 1)))
    title = "Photo rate of every method under each learning rate"
    return [plots.curves(folder / "learning_rates.png", title, panels, f"Seed {SEED}")]
