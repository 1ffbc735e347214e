"""Win rates from votes and from ratings; ties count half, the sign test counts items."""

from __future__ import annotations

import numpy as np
import pytest
from panels import MODELS, planted_ratings, planted_votes

from directalign.arena.records import LEVELS, ArenaError, Rating, Vote, latest_votes
from directalign.arena.statistics import implied_votes, judgements, tallies, win_rates


def test_counts_by_hand() -> None:
    votes = [
        Vote("ann", 0, "base", "srpo", "srpo"),
        Vote("bob", 0, "srpo", "base", "srpo"),
        Vote("ann", 1, "base", "srpo", None),
        Vote("bob", 1, "base", "srpo", "base"),
        Vote("ann", 2, "base", "refl", "base"),
    ]
    first, second = win_rates(votes, MODELS)
    assert (first.a, first.b, first.wins, first.losses, first.ties, first.items) == (
        "base",
        "srpo",
        2,
        1,
        1,
        2,
    )
    assert first.rate.value == 2.5 / 4 and (first.items_won, first.items_lost, first.p) == (
        1,
        1,
        1.0,
    )
    assert (second.b, second.rate.value, second.rate.n) == ("refl", 0.0, 1)


def test_the_latest_vote_counts_whichever_side() -> None:
    votes = [Vote("ann", 0, "base", "srpo", "srpo"), Vote("ann", 0, "srpo", "base", "base")]
    assert latest_votes(votes) == votes[1:]
    assert win_rates(votes, MODELS)[0].losses == 1


def test_tallies_hold_every_vote_once() -> None:
    votes = planted_votes(dict.fromkeys(MODELS, 0.0), items=9, annotators=3, seed=0, ties=0.3)
    table = tallies(votes, MODELS)
    assert table.sum() == len(votes) == 81
    np.testing.assert_allclose(table[0] + table[0].T, 3 * (1 - np.eye(3)))
    assert tallies(votes, ["base", "srpo"]).sum() == 27


def test_an_item_is_one_trial_however_many_voted() -> None:
    votes = [Vote(f"ann {n}", item, "base", "srpo", "srpo") for n in range(50) for item in range(4)]
    found = win_rates(votes, MODELS)[0]
    assert found.p == 2 / 16 and found.rate.low < 0.5


def test_looking_at_many_pairs_costs_certainty() -> None:
    votes = planted_votes({"base": 0.0, "srpo": 0.8, "refl": 0.0}, items=25, annotators=1, seed=5)
    found = win_rates(votes, MODELS)
    assert all(one.p_of_all >= one.p for one in found) and min(
        one.p_of_all for one in found
    ) == pytest.approx(3 * min(one.p for one in found))


def test_equal_models_are_seldom_called_different() -> None:
    """Annotators who repeat each other must not make a fair coin look biased."""
    called = [
        win_rates(planted_votes({"base": 0.0, "srpo": 0.0}, 30, 3, seed, alike=0.9), MODELS)[0].p
        < 0.05
        for seed in range(100)
    ]
    assert np.mean(called) <= 0.06


def test_ratings_imply_votes() -> None:
    ratings = planted_ratings(
        {"base": -0.5, "srpo": 0.5, "refl": 0.0}, items=6, annotators=2, seed=2
    )
    votes = implied_votes(ratings, "overall")
    levels = {
        (one.annotator, one.item, one.model): LEVELS.index(one.level)
        for one in judgements(ratings, "overall")
    }
    assert len(votes) == 6 * 2 * 3
    for vote in votes:
        left, right = (
            levels[vote.annotator, vote.item, model] for model in (vote.left, vote.right)
        )
        assert vote.winner == (None if left == right else vote.left if left < right else vote.right)


def test_one_annotator_is_not_held_against_another_in_implied_votes() -> None:
    ratings = [
        Rating("ann", 0, "base", "realism", "fail"),
        Rating("bob", 0, "srpo", "realism", "good"),
    ]
    assert implied_votes(ratings, "realism") == []


@pytest.mark.parametrize(
    ("left", "right", "winner"), [("base", "base", "base"), ("base", "srpo", "refl")]
)
def test_votes_that_cannot_be(left: str, right: str, winner: str) -> None:
    with pytest.raises(ArenaError, match="a vote needs two models"):
        Vote("ann", 0, left, right, winner)
