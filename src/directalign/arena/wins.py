"""Who wins how often: every pair of models, from votes or from ratings, ties as half a win.

Ratings imply votes: an annotator who gave one model's image the better level has preferred it. Intervals resample items. The sign test
counts items, not votes, since votes on one item are alike: an item is won by the model that most of its votes are for.
"""

from __future__ import annotations

from ..stats import Interval, grouped_rate_interval, holm, sign_test
from .levels import Scale, judgements
from .records import LEVELS, Rating, Vote, latest_votes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
import numpy as np
from jaxtyping import Float


Tallies = Float[np.ndarray, "m k k"]
"""Per item and pair of models, wins of the row over the column; a tie is half a win to each."""


@dataclass(frozen=True)
class Wins:
    """How model `b` did against model `a`.

    `rate` = (wins + ties / 2) / votes. `items_won` and `items_lost` are items where b got more, or fewer, votes than a; `p` is of the
    sign test on them, and `p_of_all` is corrected for the number of pairs that are looked at together (Holm).
    """

    a: str
    b: str
    rate: Interval
    wins: int
    losses: int
    ties: int
    items: int
    items_won: int
    items_lost: int
    p: float
    p_of_all: float


def implied_votes(ratings: Iterable[Rating], scale: Scale) -> list[Vote]:
    """A vote for each two models that one annotator judged on the same item; equal levels are a tie. Sides mean nothing here."""
    places: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for one in judgements(ratings, scale):
        places.setdefault((one.annotator, one.item), []).append(
            (one.model, LEVELS.index(one.level))
        )
    votes = []
    for (annotator, item), judged in places.items():
        for (left, better_left), (right, better_right) in combinations(sorted(judged), 2):
            winner = (
                None
                if better_left == better_right
                else left
                if better_left < better_right
                else right
            )
            votes.append(Vote(annotator, item, left, right, winner))
    return votes


def tallies(votes: Iterable[Vote], models: Sequence[str]) -> Tallies:
    """The latest votes between `models`, summed per item; items without any vote are left out."""
    place = {model: index for index, model in enumerate(models)}
    kept = [vote for vote in latest_votes(votes) if vote.left in place and vote.right in place]
    rows = {item: row for row, item in enumerate(sorted({vote.item for vote in kept}))}
    table = np.zeros((len(rows), len(models), len(models)))
    for vote in kept:
        row, left, right = rows[vote.item], place[vote.left], place[vote.right]
        share = 0.5 if vote.winner is None else float(vote.winner == vote.left)
        table[row, left, right] += share
        table[row, right, left] += 1 - share
    return table


def win_rates(votes: Iterable[Vote], models: Sequence[str]) -> list[Wins]:
    """One `Wins` per pair that was compared, `a` before `b` in the order of `models`."""
    kept = latest_votes(votes)
    pairs = [
        [vote for vote in kept if {vote.left, vote.right} == {a, b}]
        for a, b in combinations(models, 2)
    ]
    found = [
        _wins(a, b, pair)
        for (a, b), pair in zip(combinations(models, 2), pairs, strict=True)
        if pair
    ]
    return [
        replace(one, p_of_all=p)
        for one, p in zip(found, holm([one.p for one in found]), strict=True)
    ]


def _wins(a: str, b: str, votes: Sequence[Vote]) -> Wins:
    table = tallies(votes, [a, b])
    won, lost = table[:, 1, 0], table[:, 0, 1]
    items_won, items_lost = int((won > lost).sum()), int((won < lost).sum())
    p = sign_test(items_won, items_lost)
    return Wins(
        a,
        b,
        rate=grouped_rate_interval(won, won + lost),
        wins=sum(vote.winner == b for vote in votes),
        losses=sum(vote.winner == a for vote in votes),
        ties=sum(vote.winner is None for vote in votes),
        items=len(table),
        items_won=items_won,
        items_lost=items_lost,
        p=p,
        p_of_all=p,
    )
