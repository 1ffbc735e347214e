"""Bradley-Terry strengths of the models: P(i is preferred to j) = 1 / (1 + exp(θ_j − θ_i)) (Bradley and Terry 1952).

Maximum likelihood by damped Newton steps in float64; a tie is half a win to each side, so that a strength difference is the log-odds of
the win rate that the page shows (Davidson's 1970 model of ties has one more parameter and another scale). Intervals come from the
curvature of the likelihood and the scatter of its slope over items (sandwich): they hold when votes on one item are alike, and for ties.

The maximum exists only where the models cannot be split into two groups of which one never wins against the other (Ford 1957). Where they
can, every two models are given `PRIOR_TIES` more ties, and the result says so instead of being infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .intervals import Interval, t_95
from .records import ArenaError, Vote
from .wins import Tallies, tallies

PRIOR_TIES = 1.0
ELO_PER_LOG_ODDS, ELO_MEAN = 400 / math.log(10), 1000.0
TOLERANCE, MOST_STEPS = 1e-10, 200

Strengths = Float[np.ndarray, " k"]
Square = Float[np.ndarray, "k k"]


@dataclass(frozen=True)
class Ranking:
    """Strengths in log-odds, mean 0, in the order of `models`, and the covariance of their errors.

    `groups` are the models among which a path of wins leads from each to each; more than one means that the records have no finite
    answer, and `prior_ties` that it was made finite by so many made-up ties between every two models (0: by none). `items` were voted on.
    """

    models: tuple[str, ...]
    strengths: Strengths
    covariance: Square
    groups: tuple[tuple[str, ...], ...]
    prior_ties: float
    items: int
    votes: int

    def interval(self, model: str) -> Interval:
        """A model's strength against the mean of all, in log-odds."""
        one = self.models.index(model)
        return self._around(self.strengths[one], self.covariance[one, one])

    def difference(self, a: str, b: str) -> Interval:
        """The strength of b over a, in log-odds: above 0 where b is preferred."""
        i, j = self.models.index(a), self.models.index(b)
        return self._around(self.strengths[j] - self.strengths[i], self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j])

    def order(self) -> list[str]:
        """The models, the strongest first."""
        return [self.models[place] for place in np.argsort(-self.strengths, kind="stable")]

    def _around(self, value: float, variance: float) -> Interval:
        half = t_95(self.items - 1) * math.sqrt(max(0.0, float(variance))) if self.items > 1 else math.inf
        return Interval(float(value), float(value) - half, float(value) + half, self.votes)


def bradley_terry(votes: Iterable[Vote], models: Sequence[str]) -> Ranking:
    """Strengths of all `models`.

    Raises: ArenaError where one of them was never voted on, or fewer than two are given.
    """
    table = tallies(votes, models)
    wins = table.sum(0)
    unseen = [model for model, seen in zip(models, (wins + wins.T).sum(1), strict=True) if seen == 0]
    if len(models) < 2:
        raise ArenaError(f"strengths compare two or more models: got {', '.join(models) or 'none'}")
    if unseen:
        raise ArenaError(f"no vote on {', '.join(unseen)}: leave out models that were never compared")
    groups = strong_groups(wins, models)
    prior = PRIOR_TIES if len(groups) > 1 else 0.0
    strengths = fit(wins + prior / 2 * (1 - np.eye(len(models))))
    covariance = _covariance(table, strengths, prior)
    return Ranking(tuple(models), strengths, covariance, groups, prior, items=len(table), votes=round(float(wins.sum())))


def fit(wins: Square) -> Strengths:
    """Strengths, mean 0, that make `wins` (of row over column) most likely; the comparisons must be strongly connected."""
    wins = wins - np.diag(np.diag(wins))
    strengths = np.zeros(len(wins))
    for _ in range(MOST_STEPS):
        slope = _slope(wins, strengths)
        if np.abs(slope).max() <= TOLERANCE * wins.sum():
            return strengths - strengths.mean()
        strengths = _climb(wins, strengths, np.linalg.pinv(_curvature(wins, strengths), hermitian=True) @ slope)
    raise AssertionError(f"no maximum after {MOST_STEPS} Newton steps: are the comparisons strongly connected?")


def strong_groups(wins: Square, models: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Largest groups of models in which a path of wins leads from each to each; a group that beats another stands before it."""
    reach = (wins > 0) | np.eye(len(wins), dtype=bool)
    for via in range(len(wins)):  # Warshall's closure
        reach |= reach[:, via : via + 1] & reach[via : via + 1, :]
    mutual = reach & reach.T
    firsts = [row for row in range(len(wins)) if not mutual[row, :row].any()]
    firsts.sort(key=lambda row: -int(reach[row].sum()))
    return tuple(tuple(model for model, same in zip(models, mutual[row], strict=True) if same) for row in firsts)


def elo(log_odds: float) -> float:
    """A strength on the scale of chess: 400 points are odds of ten to one, and the models' mean is 1000."""
    return ELO_MEAN + ELO_PER_LOG_ODDS * log_odds


def preferred(strengths: Strengths) -> Square:
    """P(row is preferred to column)."""
    return 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))


def _slope(wins: Float[np.ndarray, "*m k k"], strengths: Strengths) -> Float[np.ndarray, "*m k"]:
    """Slope of the log-likelihood; per item where wins are."""
    return (wins - (wins + np.swapaxes(wins, -1, -2)) * preferred(strengths)).sum(-1)


def _curvature(wins: Square, strengths: Strengths) -> Square:
    chance = preferred(strengths)
    weights = (wins + wins.T) * chance * (1 - chance)
    return np.diag(weights.sum(1)) - weights


def _climb(wins: Square, strengths: Strengths, move: Strengths) -> Strengths:
    """The Newton step, halved until the likelihood does not fall."""

    def likelihood(at: Strengths) -> float:
        return -float((wins * np.logaddexp(0, at[None, :] - at[:, None])).sum())

    start, size = likelihood(strengths), 1.0
    while likelihood(strengths + size * move) < start - 1e-12 * abs(start) and size > 1e-9:
        size /= 2
    return strengths + size * move


def _covariance(table: Tallies, strengths: Strengths, prior: float) -> Square:
    """The sandwich over items. Where nothing scatters, as between models that only tie, it is that of as many independent votes: a few
    ties in a row are no certainty. With made-up ties the curvature's own is added."""
    items, models = len(table), len(strengths)
    bread = np.linalg.pinv(_curvature(table.sum(0) + prior / 2 * (1 - np.eye(models)), strengths), hermitian=True)
    slopes = _slope(table, strengths)
    scatter = slopes.T @ slopes * (items / (items - 1) if items > 1 else 1.0)
    root = _root(bread)
    effects, axes = np.linalg.eigh(root @ scatter @ root)
    sandwich = root @ (axes * np.where(effects > 1e-9, effects, 1.0)) @ axes.T @ root
    return sandwich if prior == 0 else sandwich + bread


def _root(square: Square) -> Square:
    """The symmetric square root of a matrix without negative eigenvalues."""
    values, axes = np.linalg.eigh(square)
    return (axes * np.sqrt(np.maximum(values, 0.0))) @ axes.T
