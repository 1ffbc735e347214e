"""Who wins against whom, by each number: a matrix of the models with intervals and p."""

from __future__ import annotations

from ..metrics import Metric, by_role
from .bars import interval_bar
from .comparison_files import Comparison, Model
from .files import Record, number
from .writing import chance, counted, interval
from dataclasses import dataclass
from markupsafe import Markup


LEVEL = 0.05
STYLES = {"for": "s0", "against": "s2", "even": "s1"}


@dataclass(frozen=True)
class Cell:
    """One model against another: the share of pairs it wins (a tie is half), its interval, p, and how often it won, lost and tied.

    `side`: "for" or "against" where the interval leaves out a half, else "even". `holds`: p stays
    below `LEVEL` when it is corrected for how many tests there are.
    """

    share: float
    side: str
    value: str
    ends: str
    p: str
    holds: bool
    counts: str
    bar: Markup

    @property
    def strength(self) -> float:
        """How far from even, 0 to 1."""
        return round(min(1.0, abs(self.share - 0.5) * 2), 2)


@dataclass(frozen=True)
class Matrix:
    """`rows` are (model, its cells against each model); None on the diagonal and where nothing is recorded."""

    metric: Metric
    models: list[Model]
    rows: list[tuple[Model, list[Cell | None]]]

    @property
    def duel(self) -> Cell | None:
        """Of two models: the second against the first."""
        return self.rows[1][1][0] if len(self.rows) == 2 else None


def matrices(comparison: Comparison) -> list[Matrix]:
    """One for each number by which images win or lose, judges first."""
    found = []
    for _, metrics in by_role(comparison.metrics.values()):
        for each in metrics:
            wins = comparison.wins(each.name)
            models = [
                model for model in comparison.models if any(model.key in pair for pair in wins)
            ]
            rows = [
                (row, [_cell(wins.get((column.key, row.key))) for column in models])
                for row in models
            ]
            if len(models) > 1:
                found.append(Matrix(each, models, rows))
    return found


def corrected(comparison: Comparison) -> bool:
    """Whether the records tell p after Holm's correction for how many tests there are."""
    return any(
        "p_holm" in record
        for each in comparison.metrics
        for record in comparison.wins(each).values()
    )


def _cell(win: Record | None) -> Cell | None:
    share = number(win)
    if win is None or share is None:
        return None
    value, ends = interval(win, percent=True)
    low, high = (number(win.get(end)) for end in ("low", "high"))
    counts = [
        (win.get(names), name, names)
        for name, names in (("win", "wins"), ("loss", "losses"), ("tie", "ties"))
    ]
    told = ", ".join(
        counted(count, name, names) for count, name, names in counts if isinstance(count, int)
    )
    span = (share if low is None else low, share if high is None else high)
    holm = number(win.get("p_holm"))
    side = "for" if span[0] > 0.5 else "against" if span[1] < 0.5 else "even"
    bar = interval_bar([(STYLES[side], span, share)], f"{value} of pairs won ({ends})", middle=0.5)
    return Cell(
        share, side, value, ends, chance(win.get("p")), holm is not None and holm < LEVEL, told, bar
    )
