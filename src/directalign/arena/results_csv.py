"""The records as CSV: one row per rating or vote, and one table of everything that the page says.

A cell that a spreadsheet would take for a formula (it begins with = + - @ or a control character) is given an apostrophe in front; so is
one that begins with an apostrophe, which makes taking it off again unambiguous. Numbers are written as they are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from ..stats import Interval
from .agreement import Agreement
from .ranking import elo
from .records import Rating, Vote
from .results import Results

Cell = str | int | float | None

RATING_COLUMNS = ("annotator", "item", "model", "axis", "level", "at")
VOTE_COLUMNS = ("annotator", "item", "left", "right", "winner", "at")
SUMMARY_COLUMNS = ("what", "of", "a", "b", "value", "low", "high", "n", "p", "p_of_all")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def csv_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table with a head; None is an empty cell, texts are defused, lines end as RFC 4180 has it."""
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerow(columns)
    writer.writerows([defused(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return written.getvalue()


def defused(text: str) -> str:
    """The text, with an apostrophe in front where a spreadsheet might run it."""
    return f"'{text}" if text.startswith(FORMULA) else text


def ratings_csv(ratings: Iterable[Rating]) -> str:
    """One row per rating."""
    return csv_table(RATING_COLUMNS, [(one.annotator, one.item, one.model, one.axis, one.level, one.at) for one in ratings])


def votes_csv(votes: Iterable[Vote]) -> str:
    """One row per vote; a tie has no winner."""
    return csv_table(VOTE_COLUMNS, [(one.annotator, one.item, one.left, one.right, one.winner, one.at) for one in votes])


def summary_csv(results: Results) -> str:
    """One row per number of the page.

    `what` is share (of model `a` on the scale `of`, at level `b`), wins (of `b` against `a`; `of` is votes, or the scale whose ratings imply
    them), strength (of `a`, log-odds), elo or alpha (`b` its metric). `low` and `high` are the ends of the 95 % interval.
    """
    return csv_table(SUMMARY_COLUMNS, _summary(results))


def _summary(results: Results) -> Iterator[Sequence[Cell]]:
    for found in results.shares.values():
        for one in found:
            yield from (("share", one.scale, one.model, level, *_ends(share), None, None) for level, share in one.shares.items())
    for source, comparison in results.comparisons.items():
        yield from (("wins", source, one.a, one.b, *_ends(one.rate), one.p, one.p_of_all) for one in comparison.wins)
        for model in comparison.ranking.order():
            strength = comparison.ranking.interval(model)
            yield ("strength", source, model, None, *_ends(strength), None, None)
            yield ("elo", source, model, None, *(elo(end) for end in _ends(strength)[:3]), strength.n, None, None)
    for source, agreement in results.agreement.items():
        yield from _alphas(source, agreement)


def _alphas(source: str, agreement: Agreement) -> Iterator[Sequence[Cell]]:
    for metric, value in agreement.alpha.items():
        ends = agreement.interval if metric == "ordinal" else None
        yield ("alpha", source, None, metric, value, ends and ends.low, ends and ends.high, agreement.units, None, None)


def _ends(interval: Interval) -> tuple[float, float, float, int]:
    return interval.value, interval.low, interval.high, interval.n
