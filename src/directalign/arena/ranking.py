"""Bradley-Terry strengths of the models from votes, and their Elo scale; the estimate is `stats.bradley_terry`."""

from __future__ import annotations

from ..stats import Ranking, bradley_terry
from .records import ArenaError, Vote
from .wins import tallies
import math
from collections.abc import Iterable, Sequence


ELO_PER_LOG_ODDS, ELO_MEAN = 400 / math.log(10), 1000.0


def rank_models(votes: Iterable[Vote], models: Sequence[str]) -> Ranking:
    """Strengths of all `models`; items are the groups of the sandwich covariance.

    Raises: ArenaError where one of them was never voted on, or fewer than two are given.
    """
    wins = tallies(votes, models)
    if len(models) < 2:
        raise ArenaError(f"strengths compare two or more models: got {', '.join(models) or 'none'}")
    seen = wins.sum((0, 2)) + wins.sum((0, 1))
    unseen = [model for model, votes in zip(models, seen, strict=True) if votes == 0]
    if unseen:
        raise ArenaError(
            f"no vote on {', '.join(unseen)}: leave out models that were never compared"
        )
    return bradley_terry(wins, models)


def elo(log_odds: float) -> float:
    """A strength on the Elo scale: 400 points are odds of ten to one, the models' mean is 1000."""
    return ELO_MEAN + ELO_PER_LOG_ODDS * log_odds
