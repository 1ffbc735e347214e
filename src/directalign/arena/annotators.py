"""Is one annotator unlike the others, and does the side of the screen decide? Hints for a look at the records, not grounds to drop anyone.

An annotator is held against the others on the units that both answered: `against_others` is Krippendorff's alpha with the disagreement of
this annotator's pairs alone in its numerator, `without` the alpha of the panel that is left when they are taken out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

import numpy as np

from .agreement import Reliability, alpha, coincidences, distances, rated, voted
from .intervals import Interval, sign_test, wilson
from .records import AXES, Rating, Vote, latest_ratings, latest_votes


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
    return [_rating_annotator(name, [one for one in kept if one.annotator == name], panels) for name in sorted({one.annotator for one in kept})]


def voting_annotators(votes: Iterable[Vote]) -> list[Annotator]:
    """One `Annotator` per name, in order."""
    kept = latest_votes(votes)
    panel = voted(kept)
    return [_voting_annotator(name, [one for one in kept if one.annotator == name], panel) for name in sorted({one.annotator for one in kept})]


def side(votes: Iterable[Vote]) -> Side | None:
    """Whether images win by standing on the left; None without a decided vote."""
    decided = [vote for vote in latest_votes(votes) if vote.winner is not None]
    if not decided:
        return None
    left = sum(vote.winner == vote.left for vote in decided)
    n = len(decided)
    return Side(Interval(left / n, *wilson(left / n, float(n)), n), left, n - left, sign_test(left, n - left))


def against_others(panel: Reliability, name: str) -> float | None:
    """Ordinal alpha of one annotator's pairs with the others: 1 they say the same, 0 as by chance; None where no unit is shared."""
    if name not in panel.annotators:
        return None
    answers, column = panel.answers, panel.annotators.index(name)
    values = np.unique(answers[np.isfinite(answers)])
    margins = coincidences(answers).sum((0, 2))
    far = distances("ordinal", values, margins)
    pairs = float(margins.sum() * (margins.sum() - 1))
    expected = float(margins @ far @ margins) / pairs if pairs > 0 else 0.0
    others = np.delete(answers, column, axis=1)
    shared = np.isfinite(answers[:, column, None]) & np.isfinite(others)
    if expected == 0 or not shared.any():
        return None
    mine = np.searchsorted(values, np.broadcast_to(answers[:, column, None], others.shape)[shared])
    return 1 - float(far[mine, np.searchsorted(values, others[shared])].mean()) / expected


def without(panel: Reliability, name: str) -> float | None:
    """Ordinal alpha of the others; None where it is not defined."""
    if name not in panel.annotators:
        return None
    left = alpha(np.delete(panel.answers, panel.annotators.index(name), axis=1), "ordinal")
    return left if np.isfinite(left) else None


def _rating_annotator(name: str, ratings: Sequence[Rating], panels: Sequence[Reliability]) -> Annotator:
    finished: dict[int, float | None] = {}
    for one in ratings:
        finished[one.item] = one.at if one.at is None else max(one.at, finished.get(one.item) or one.at)
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
    answers = ["tie" if vote.winner is None else "left" if vote.winner == vote.left else "right" for vote in votes]
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
