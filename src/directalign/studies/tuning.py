"""The learning rate of every method, chosen with equal care: the same rates, seed, pairs and rule for all of them.

The budget is shorter than that of table 1, and longer for policy gradients as there. The seed is none of those that the methods are compared on.
"""

from __future__ import annotations

from .comparing.matching import base_row
from .running.arms import ARMS, allowance, sized
from .running.budget import Budget, within
from .running.experiment import run_arms
from .running.records import Arm, Row
from .showing import figures
from .showing.palette import title_of
from .showing.tables import markdown, number
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path


NAME = "tuning"
TITLE = "The learning rate of every method, chosen with equal care"
QUESTION = (
    "The paper puts SRPO beside ReFL, DRaFT-LV and DanceGRPO (arXiv 2509.06942, table 1); such a comparison is worth what the tuning of each method is worth. "
    "Here every method is trained with the same learning rates, within the same number of network calls (policy gradients three times as many), "
    "and one rule picks the rate with which "
    "`directalign study table1` compares it."
)
RATES = (3e-5, 1e-4, 3e-4)
SEED = 100
KEEPS = 0.95
FULL = Budget(calls=4_000, measurements=4, num_pairs=64, diversity_prompts=0)
QUICK = Budget(calls=32, measurements=1, num_pairs=8, diversity_prompts=0, probed=1)
QUICK_ARMS = ("srpo", "refl")


@dataclass(frozen=True)
class Choice:
    """The measurement that speaks for a method's rate; `keeps` says whether any of its measurements kept the content."""

    row: Row
    keeps: bool


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Train every method with every rate; the rows say the method beside the arm. A quick run takes two methods."""
    budget = QUICK if quick else FULL
    methods = [arm for arm in ARMS if not quick or arm.name in QUICK_ARMS]
    tried = {with_rate(arm, rate).name: arm.name for arm in methods for rate in RATES}
    arms = [with_rate(arm, rate) for arm in (within(allowance(method, budget), method, out, recipes) for method in sized(methods, quick)) for rate in RATES]
    return [row | {"method": tried[row["arm"]]} for row in run_arms(NAME, arms, (SEED,), out, recipes)]


def with_rate(arm: Arm, rate: float) -> Arm:
    """The arm under a learning rate, which becomes part of its name."""
    return replace(arm, name=f"{arm.name}-lr{rate:.0e}", title=f"{arm.title}, {rate:.0e}", overrides=(*arm.overrides, f"train.learning_rate={rate}"))


# --- the choice -------------------------------------------------------------------------------------------------------


def chosen(rows: list[Row]) -> dict[str, float]:
    """{method: learning rate}, see `choice`."""
    return {method: choice(rows, method).row["learning_rate"] for method in _methods(rows)}


def choice(rows: list[Row], method: str) -> Choice:
    """The measurement with the highest photo rate among those of a method whose content is at least 95 % of the base model's.

    Where training never leaves one, the measurement with the highest product of photo rate and content. Of equal ones the first.
    """
    trained = [row for row in rows if row["method"] == method and row["step"] > 0]
    kept = [row for row in trained if row["content"] >= KEEPS * base_row(rows)["content"]]
    if kept:
        return Choice(max(kept, key=lambda row: row["photo_rate"]), keeps=True)
    return Choice(max(trained, key=lambda row: row["photo_rate"] * row["content"]), keeps=False)


def _methods(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


# --- text and figure --------------------------------------------------------------------------------------------------


def tell(rows: list[Row]) -> str:
    """The table of all methods and rates, and how one of them is chosen."""
    return "\n\n".join(["## What was chosen", _rule(rows), _table(rows), *_remarks(rows)])


def _rule(rows: list[Row]) -> str:
    content = base_row(rows)["content"]
    return (
        "Each cell holds the measurement that speaks for a rate: the highest photo rate among those "
        f"that keep {100 * KEEPS:.0f} % of the base model's content ({number(100 * KEEPS * content, 1)} % of the images right), "
        "or, in brackets, the highest product of photo rate and content where training left none. "
        "The rate with the best cell is chosen; one that keeps the content goes before one that does not."
    )


def _table(rows: list[Row]) -> str:
    rates = sorted({row["learning_rate"] for row in rows})
    lines = []
    for method, picked in chosen(rows).items():
        cells = [_cell(choice([row for row in rows if row["step"] == 0 or row["learning_rate"] == rate], method)) for rate in rates]
        lines.append([title_of(method), *cells, f"{picked:.0e}"])
    return markdown(["method", *(f"{rate:.0e}" for rate in rates), "chosen"], lines)


def _cell(found: Choice) -> str:
    numbers = f"photo {100 * found.row['photo_rate']:.0f} %, content {100 * found.row['content']:.0f} %, update {found.row['step']}"
    return numbers if found.keeps else f"({numbers})"


def _remarks(rows: list[Row]) -> list[str]:
    """Where the choice is weak: at an end of the tried rates, or without any measurement that kept the content."""
    rates = [row["learning_rate"] for row in rows]
    ends = [title_of(method) for method, rate in chosen(rows).items() if rate in (min(rates), max(rates))]
    lost = [title_of(method) for method in _methods(rows) if not choice(rows, method).keeps]
    return [
        *([f"Chosen at an end of the tried rates, so that a rate beyond may be better: {', '.join(ends)}."] if ends else []),
        *([f"Without any measurement that kept the content: {', '.join(lost)}."] if lost else []),
    ]


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """One panel per method: photo rate over network calls, a line per rate."""
    panels = [_panel([row for row in rows if row["method"] == method], method) for method in _methods(rows)]
    return [figures.curves(folder / f"{NAME}.png", "Photo rate of every method under each learning rate", panels, f"Seed {SEED}")]


def _panel(rows: list[Row], method: str) -> figures.Panel:
    lines = []
    for rate in sorted({row["learning_rate"] for row in rows}):
        points = [(row["call_equivalents"], row["photo_rate"]) for row in rows if row["learning_rate"] == rate]
        lines.append(figures.Line(f"{rate:.0e}", [calls for calls, _ in points], [photo for _, photo in points]))
    return figures.Panel(title_of(method), "network calls", "photo rate", lines, percent=True, span_y=(0, 1))
