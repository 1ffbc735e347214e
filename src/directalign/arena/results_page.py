"""The result page: one HTML file from `Results`, no script, nothing fetched, light and dark; the report's style with a few lines of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..stats import Interval, Ranking
from . import results_text as text
from .agreement import Agreement
from .levels import SCALES
from .ranking import elo
from .records import LEVELS
from .results import VOTES, Comparison, Results

TEMPLATES = Path(__file__).parent / "templates"
REPORT_STYLE = Path(__file__).parents[1] / "report" / "templates" / "style.css"
MARGIN = 0.08
"""Share of a whisker's track left free at either end."""
WORDS = {level: level.capitalize() for level in LEVELS}


@dataclass(frozen=True)
class Cell:
    """A cell of the win-rate matrix: how often the row's model wins against the column's."""

    rate: Interval
    is_clear: bool
    note: str


@dataclass(frozen=True)
class Whisker:
    """A model's strength on a track: `at`, `low`, `high` are places in percent of its width."""

    label: str
    strength: Interval
    elo: float
    beats_average: float
    at: float
    low: float
    high: float


def results_page(results: Results, title: str, links: Sequence[tuple[str, str]] = ()) -> str:
    """The page as HTML.

    Args:
        links: (words, address) of what can be downloaded beside it, such as the CSV tables.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=text.percent, span=text.span, signed=text.signed, number=text.number, chance=text.chance, counted=text.count)
    style = Markup(REPORT_STYLE.read_text(encoding="utf-8") + (TEMPLATES / "results.css").read_text(encoding="utf-8"))
    return environment.get_template("results.html.j2").render(
        style=style,
        title=title,
        links=links,
        results=results,
        labels=results.labels,
        names=text.NAMES,
        levels=WORDS,
        lead=text.lead(results),
        claims=text.claims(results),
        caveats=text.caveats(results),
        bars=[(scale, results.shares[scale]) for scale in SCALES if scale in results.shares],
        comparisons=[_compared(source, found, results.labels) for source, found in results.comparisons.items()],
        agreement=[(source, found, text.read_alpha(found), _alpha_rail(found)) for source, found in results.agreement.items()],
        panels=[(kind, found) for kind, found in (("Ratings", results.raters), ("Votes", results.voters)) if found],
        side=results.side,
    )


def matrix(comparison: Comparison) -> dict[tuple[str, str], Cell]:
    """Cells by (row, column), both ways of every pair that was compared."""
    cells = {}
    for wins in comparison.wins:
        other = Interval(1 - wins.rate.value, 1 - wins.rate.high, 1 - wins.rate.low, wins.rate.n)
        counts = f"{wins.items} items, {text.chance(wins.p)}, {text.chance(wins.p_of_all)} of all pairs"
        cells[wins.b, wins.a] = Cell(wins.rate, text.is_clear(wins), f"{wins.wins} won, {wins.losses} lost, {wins.ties} tied; {counts}")
        cells[wins.a, wins.b] = Cell(other, text.is_clear(wins), f"{wins.losses} won, {wins.wins} lost, {wins.ties} tied; {counts}")
    return cells


def whiskers(ranking: Ranking, labels: Mapping[str, str]) -> tuple[list[Whisker], list[tuple[float, str]]]:
    """One whisker per model, the strongest first, and the ticks (place in percent, text) of their common track."""
    found = {model: ranking.interval(model) for model in ranking.order()}
    ends = [end for one in found.values() for end in (one.value, one.low, one.high, 0.0) if math.isfinite(end)]
    low, high = min(ends), max(ends)
    room = MARGIN * (high - low) or 1.0

    def place(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - low + room) / (high - low + 2 * room)))

    rows = [
        Whisker(labels[model], one, elo(one.value), 1 / (1 + math.exp(-one.value)), place(one.value), place(one.low), place(one.high))
        for model, one in found.items()
    ]
    return rows, [(place(tick), text.signed(tick, 1) if tick else "0") for tick in _ticks(low, high)]


def _compared(source: str, comparison: Comparison, labels: Mapping[str, str]) -> dict[str, Any]:
    ranking = comparison.ranking
    rows, marks = whiskers(ranking, labels)
    finite = text.made_finite(ranking, labels) if ranking.prior_ties else ""
    return {"source": source, "is_votes": source == VOTES, "matrix": matrix(comparison), "ranking": ranking, "finite": finite, "whiskers": rows, "ticks": marks}


def _ticks(low: float, high: float) -> list[float]:
    """At most seven round numbers from low to high, 0 among them where it lies between."""
    step = next(size * 10.0**power for power in range(-1, 9) for size in (1, 2, 5) if high - low <= 6 * size * 10.0**power)
    return [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _alpha_rail(agreement: Agreement) -> tuple[float, float, float] | None:
    """Places of the ordinal alpha and its ends on a track from 0 to 1, in percent; what lies below 0 is at 0, beside its number."""
    if agreement.interval is None:
        return None
    at, low, high = (100 * min(1.0, max(0.0, value)) for value in (agreement.interval.value, agreement.interval.low, agreement.interval.high))
    return at, low, high
