"""Bradley-Terry from votes: closed forms, no finite maximum, coverage of the intervals."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from panels import MODELS, planted_votes

from directalign.arena.records import ArenaError, Vote
from directalign.arena.statistics import elo, rank_models
from directalign.stats import PRIOR_TIES


def test_two_models_have_a_closed_form() -> None:
    votes = [
        Vote("ann", item, "base", "srpo", "srpo" if item < 7 else None if item < 9 else "base")
        for item in range(12)
    ]
    ranking = rank_models(votes, ["base", "srpo"])
    assert ranking.strengths[1] - ranking.strengths[0] == pytest.approx(
        math.log((7 + 1) / (3 + 1)), abs=1e-12
    )
    assert ranking.difference("base", "srpo").value == pytest.approx(math.log(2), abs=1e-12)
    assert ranking.order() == ["srpo", "base"] and ranking.prior_ties == 0 and ranking.votes == 12


def test_a_single_vote_an_item_has_the_variance_of_the_textbook() -> None:
    """Without ties the sandwich is the inverse Fisher information, up to m / (m − 1)."""
    votes = [
        Vote("ann", item, "base", "srpo", "srpo" if item < 30 else "base") for item in range(40)
    ]
    ranking = rank_models(votes, ["base", "srpo"])
    variance = ranking.covariance[0, 0] + ranking.covariance[1, 1] - 2 * ranking.covariance[0, 1]
    assert variance == pytest.approx((1 / 30 + 1 / 10) * 40 / 39, rel=1e-9)


def test_repeating_every_vote_teaches_nothing() -> None:
    votes = planted_votes({"base": 0.0, "srpo": 0.7, "refl": 0.3}, items=30, annotators=1, seed=3)
    copies = [
        Vote(f"copy {n}", vote.item, vote.left, vote.right, vote.winner)
        for vote in votes
        for n in range(4)
    ]
    once, often = rank_models(votes, MODELS), rank_models(copies, MODELS)
    np.testing.assert_allclose(once.strengths, often.strengths, atol=1e-9)
    np.testing.assert_allclose(once.covariance, often.covariance, atol=1e-9)


def test_elo_is_1000_for_the_mean_and_400_for_ten_to_one() -> None:
    assert elo(0.0) == 1000 and elo(math.log(10)) == pytest.approx(1400)


def coverage(alike: float, ties: float, annotators: int, runs: int = 100) -> float:
    """Share of intervals that hold the truth: the log-odds of the rate with ties as half wins."""
    planted = {"base": 0.0, "srpo": 0.9}
    rate = (1 - ties) / (1 + math.exp(-0.9)) + ties / 2
    truth, covered = math.log(rate / (1 - rate)), 0
    for seed in range(runs):
        found = rank_models(
            planted_votes(planted, 50, annotators, seed + 1000 * annotators, alike, ties),
            list(planted),
        ).difference("base", "srpo")
        covered += found.low <= truth <= found.high
    return covered / runs


def test_intervals_cover_planted_strengths() -> None:
    found = [coverage(0.0, 0.0, 2), coverage(0.8, 0.0, 4), coverage(0.3, 0.3, 3)]
    assert min(found) >= 0.9 and 0.92 <= np.mean(found) <= 0.98


def test_intervals_cover_for_every_pair_of_several_models() -> None:
    planted = {"base": 0.0, "srpo": 0.9, "refl": -0.4, "draft": 0.3}
    covered = []
    for seed in range(40):
        ranking = rank_models(planted_votes(planted, 40, 2, seed, alike=0.5), list(planted))
        for a, b in combinations(planted, 2):
            found = ranking.difference(a, b)
            covered.append(found.low <= planted[b] - planted[a] <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_a_model_that_always_wins_has_no_finite_strength_and_it_is_said() -> None:
    votes = [Vote("ann", item, "base", "srpo", "srpo") for item in range(10)]
    votes += [
        Vote("ann", item, "base", "refl", "base" if item % 2 else "refl") for item in range(10)
    ]
    ranking = rank_models(votes, MODELS)
    assert ranking.groups == (("srpo",), ("base", "refl")) and ranking.prior_ties == PRIOR_TIES
    assert np.isfinite(ranking.strengths).all() and ranking.order()[0] == "srpo"
    pair = rank_models(votes[:10], ["base", "srpo"])
    assert pair.difference("base", "srpo").value == pytest.approx(
        math.log(10.5 / 0.5)
    )  # one made-up tie
    assert pair.difference("base", "srpo").low < math.log(
        0.85 / 0.15
    )  # and no false certainty from ten wins that are all alike


def test_a_tie_connects_both_ways() -> None:
    votes = [Vote("ann", 0, "base", "srpo", None), Vote("ann", 1, "base", "srpo", "srpo")]
    assert rank_models(votes, ["base", "srpo"]).prior_ties == 0


def test_models_without_votes_are_refused_by_name() -> None:
    votes = [Vote("ann", 0, "base", "srpo", "srpo")]
    with pytest.raises(ArenaError, match="no vote on refl"):
        rank_models(votes, MODELS)
    with pytest.raises(ArenaError, match="two or more models: got base"):
        rank_models(votes, ["base"])


def test_one_item_says_nothing() -> None:
    votes = [Vote(f"ann {n}", 0, "base", "srpo", "srpo" if n < 3 else "base") for n in range(5)]
    assert rank_models(votes, ["base", "srpo"]).interval("srpo").low == -math.inf


def test_ties_alone_are_not_certainty() -> None:
    """They do not scatter; the interval is that of as many votes that were split."""
    tied = rank_models(
        [Vote("ann", item, "base", "srpo", None) for item in range(6)], ["base", "srpo"]
    )
    split = rank_models(
        [Vote("ann", item, "base", "srpo", ("base", "srpo")[item % 2]) for item in range(6)],
        ["base", "srpo"],
    )
    assert tied.interval("srpo").value == split.interval("srpo").value == 0
    assert 0.5 < tied.interval("srpo").high <= split.interval("srpo").high < 2
    three = rank_models(
        [
            Vote("ann", item, *pair, None)
            for item in range(6)
            for pair in (("base", "srpo"), ("srpo", "refl"), ("base", "refl"))
        ],
        MODELS,
    )
    assert all(three.interval(model).high > 0.2 for model in MODELS) and np.allclose(
        three.covariance.sum(0), 0
    )
