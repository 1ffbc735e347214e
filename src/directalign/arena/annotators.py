"""Is one annotator unlike the others, and does the side of the screen decide? Hints for a look at the records, not grounds to drop anyone.

An annotator is held against the others on the units that both answered: `against_others` is Krippendorff's alpha with the disagreement of
this annotator's pairs alone in its numerator, `without` the alpha of the panel that is left when they are taken out.
"""

from __future__ import annotations

from ..stats import Interval, sign_test, wilson_interval
from .agreement import Reliability, alpha, rated, voted
from .records import AXES, Rating, Vote, latest_ratings, latest_votes
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
import numpy as np


@dataclass(frozen=True)
class Side:
    """How often the left image won, of the votes that were no tie; `p` of a fair coin (sides are drawn anew for every vote)."""

    rate: Interval
    left: int
    right: int
    p: float


@dataclass(frozen=True)
class Annotator:
    """One annotator's habits. None: not known, or not defined for so few answers.

    `seconds` is the median time between finished items. `commonest` is the share of their most frequent answer (of levels, or of left,
    right and tie), `ties` the share of ties and `side` the share of wins on the left, both for votes alone.
    """

    name: str
    answers: int
    items: int
    seconds: float | None
    commonest: float
    against_others: float | None
    without: float | None
    ties: float | None = None
    side: Side | None = None


def rating_annotators(ratings: Iterable[Rating]) -> list[Annotator]:
    """One `Annotator` per name, in order; agreement is the mean over the axes on which it is defined."""
    kept = latest_ratings(ratings)
    panels = [rated(kept, axis) for axis in AXES]
    return [
        _rating_annotator(name, [one for one in kept if one.annotator == name], panels)
        for name in sorted({one.annotator for one in kept})
    ]


def voting_annotators(votes: Iterable[Vote]) -> list[Annotator]:
    """One `Annotator` per name, in order."""
    kept = latest_votes(votes)
    panel = voted(kept)
    return [
        _voting_annotator(name, [one for one in kept if one.annotator == name], panel)
        for name in sorted({one.annotator for one in kept})
    ]


def side(votes: Iterable[Vote]) -> Side | None:
    """Whether images win by standing on the left; None without a decided vote."""
    decided = [vote for vote in latest_votes(votes) if vote.winner is not None]
    if not decided:
        return None
    left = sum(vote.winner == vote.left for vote in decided)
    n = len(decided)
    return Side(wilson_interval(left / n, n), left, n - left, sign_test(left, n - left))


def against_others(panel: Reliability, name: str) -> float | None:
    """Ordinal alpha of one annotator's pairs with the others: 1 they say the same, 0 as by chance; None where no unit is shared."""
    if name not in panel.annotators:
        return None
    column = panel.annotators.index(name)
    answered = np.isfinite(panel.answers)
    # the ordinal metric: how many answers, on units with two or more, lie between two values
    paired = panel.answers[answered.sum(1) >= 2]
    values, counts = np.unique(paired[np.isfinite(paired)], return_counts=True)
    rank = dict(zip(values.tolist(), (np.cumsum(counts) - counts / 2).tolist(), strict=True))
    others = np.delete(panel.answers, column, axis=1)
    own, other = np.nonzero(answered[:, column, None] & np.isfinite(others))
    if len(values) < 2 or not len(own):
        return None
    ranks = np.array(list(rank.values()))
    expected = counts @ (ranks[:, None] - ranks) ** 2 @ counts / (counts.sum() * (counts.sum() - 1))
    apart = [
        rank[panel.answers[unit, column]] - rank[others[unit, of]]
        for unit, of in zip(own, other, strict=True)
    ]
    return 1 - float(np.square(apart).mean() / expected)


def without(panel: Reliability, name: str) -> float | None:
    """Ordinal alpha of the others; None where it is not defined."""
    if name not in panel.annotators:
        return None
    return alpha(np.delete(panel.answers, panel.annotators.index(name), axis=1), "ordinal")


def _rating_annotator(
    name: str, ratings: Sequence[Rating], panels: Sequence[Reliability]
) -> Annotator:
    finished: dict[int, float | None] = {}
    for one in ratings:
        finished[one.item] = (
            one.at if one.at is None else max(one.at, finished.get(one.item) or one.at)
        )
    return Annotator(
        name,
        answers=len(ratings),
        items=len(finished),
        seconds=_pace(finished),
        commonest=_commonest([one.level for one in ratings]),
        against_others=_mean([against_others(panel, name) for panel in panels]),
        without=_mean([without(panel, name) for panel in panels]),
    )


def _voting_annotator(name: str, votes: Sequence[Vote], panel: Reliability) -> Annotator:
    answers = [
        "tie" if vote.winner is None else "left" if vote.winner == vote.left else "right"
        for vote in votes
    ]
    return Annotator(
        name,
        answers=len(votes),
        items=len({vote.item for vote in votes}),
        seconds=_pace(dict(enumerate(vote.at for vote in votes))),
        commonest=_commonest(answers),
        against_others=against_others(panel, name),
        without=without(panel, name),
        ties=answers.count("tie") / len(votes),
        side=side(votes),
    )


def _pace(finished: Mapping[int, float | None]) -> float | None:
    """Median seconds between one answer and the next, so that breaks hardly count; None for fewer than two known times."""
    times = sorted(at for at in finished.values() if at is not None)
    return median(later - earlier for earlier, later in pairwise(times)) if len(times) > 1 else None


def _commonest(answers: Sequence[str]) -> float:
    return Counter(answers).most_common(1)[0][1] / len(answers)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
