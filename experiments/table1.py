"""All methods at equal compute, equal reward and equal photo rate (arXiv 2509.06942, table 1).

The paper compares the methods neither at equal compute nor at equal reward. Here each trains the
same embedded FLUX against the same biased reward, with a learning rate chosen by one rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import plots
from .rows import Row, Rows, at_budget, at_level, over
from .runner import ARMS, Budget, allowance, run_arms, small_batches, with_drift, within
from .tables import Column, Table, means, number

SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
FULL = Budget(calls=5_000, measurements=5, num_samples=64, diversity_prompts=8)
QUICK = Budget(calls=32, measurements=1, num_samples=8, diversity_prompts=1, probed=1)
NUMBERS = (
    Column("score_pos", "reward"),
    Column("photo_rate", "photo rate", 0, percent=True),
    Column("content", "content", 0, percent=True),
    Column("color_drift", "colour drift"),
    Column("saturation_drift", "saturation drift", 0, percent=True),
    Column("sharpness_drift", "sharpness drift", 0, percent=True),
    Column("diversity", "diversity"),
)
NFE, SECONDS = Column("call_equivalents", "NFE equivalents", 0), Column("seconds", "seconds", 0)
TRAILS = (
    ("Colour drift", "distance from photographs", "color_drift", False),
    ("Content", "share of images", "content", True),
)
COSTS = (
    ("Photo rate", "share of images", "photo_rate", True),
    ("Reward", "score under the positive phrases", "score_pos", False),
)
"""Title, y, key, whether y is a rate."""
DOTS = {"color_drift": "Colour drift", "content": "Content"}
DOTS |= {"diversity": "Diversity", "call_equivalents": "NFE equivalents"}


def measure(out: Path, quick: bool) -> list[Row]:
    """Train every arm within its budget from every seed."""
    budget = QUICK if quick else FULL
    small = small_batches(ARMS, quick)
    arms = [within(allowance(arm, budget, often=True), arm, out) for arm in small]
    rows = run_arms("table1", arms, QUICK_SEEDS if quick else SEEDS, out)
    return with_drift(rows, budget.num_samples)


def tables(rows: Rows) -> dict[str, Table]:
    key = "call_equivalents"
    amount = min(row[key] for arm in rows.arms for row in rows.last(arm))
    at_amount = rows.matched(lambda run: at_budget(run, key, amount))
    ended = (*NUMBERS, Column("step", "updates", 0), SECONDS)
    return {
        "matched_compute": methods(rows, at_amount, ended),
        "matched_reward": at_level_of_most(rows, "score_pos", (*NUMBERS, NFE, SECONDS)),
        "matched_photo_rate": at_level_of_most(rows, "photo_rate", (*NUMBERS, NFE, SECONDS)),
    }


def at_level_of_most(rows: Rows, key: str, columns: Sequence[Column]) -> Table:
    """Methods where `key` first reaches `level_of_most`; none if the base model does."""
    level = rows.level_of_most(key)
    found = rows.matched(lambda run: at_level(run, key, level))
    return methods(rows, found if level > rows.base[key] else {}, columns)


def methods(rows: Rows, found: dict[str, Rows], columns: Sequence[Column]) -> Table:
    """The base model, then one line per method that was reached."""
    titles = rows.arms
    lines = [["base model", *means(columns, [rows.base])]]
    lines += [[titles[arm], *means(columns, found[arm])] for arm in titles if arm in found]
    return Table(["method", *(column.title for column in columns)], lines)


def draw(rows: Rows, folder: Path) -> list[Path]:
    spent = Rows(row for row in rows if row["call_equivalents"] > 0)
    trails, costs = [], []
    for title, y, key, percent in TRAILS:
        lines = plots.lines_along(rows, "photo_rate", key)
        trails.append(plots.Panel(title, "photo rate", y, lines, percent))
    for title, y, key, percent in COSTS:
        lines = plots.lines_along(spent, "call_equivalents", key)
        costs.append(plots.Panel(title, "NFE equivalents", y, lines, percent, log_x=True))
    title = "What each method pays for its photo rate"
    note = "Means over seeds, from the base model on"
    drawn = [plots.curves(folder / "table1_trails.png", title, trails, note)]
    title = "Cost of each method"
    drawn.append(plots.curves(folder / "table1_cost.png", title, costs, "Means over seeds"))
    level, base = rows.level_of_most("photo_rate"), rows.base
    if level <= base["photo_rate"]:
        return drawn
    found = rows.matched(lambda run: at_level(run, "photo_rate", level))
    columns = []
    for key, title in DOTS.items():
        values = {arm: over(found.get(arm, []), key) for arm in rows.arms}
        log = key == "call_equivalents"
        at = None if log else base.get(key)
        columns.append(plots.DotColumn(title, values, key == "content", log, at))
    title = f"All methods where they first reach a photo rate of {number(level, 2)}"
    note = "Means over seeds with 95 % intervals; dashed: the base model"
    return [*drawn, plots.dots_with_intervals(folder / "table1_matched.png", title, columns, note)]
