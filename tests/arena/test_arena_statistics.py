"""Levels by the paper's rule, win rates, and Bradley-Terry strengths with their intervals."""

import math
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from planted_answers import MODELS, cast, planted_ratings, planted_votes

from directalign.arena import statistics
from directalign.arena.records import AXES, LEVELS, ArenaError, Level, Rating, Vote, latest
from directalign.stats import PRIOR_TIES

PAIR = ("base", "srpo")


def rated_image(*levels: Level, item: int = 0) -> list[Rating]:
    return [Rating("ann", item, "base", *given) for given in zip(AXES, levels, strict=False)]


def test_overall_is_the_lowest_level_of_all_axes():
    for levels in product(LEVELS, repeat=len(AXES)):
        (found,) = statistics.judgements(rated_image(*levels), "overall").values()
        assert (found == "excellent") == (set(levels) == {"excellent"})  # the paper's rule
        assert (found == "fail") == ("fail" in levels)
        assert found in levels and LEVELS.index(found) == max(map(LEVELS.index, levels))


def test_incomplete_images_have_no_overall_level_and_the_latest_rating_counts():
    ratings = rated_image("good", "good", "pass", "good") + rated_image("fail", "fail", item=1)
    assert statistics.judgements(ratings, "overall") == {("ann", 0, "base"): "pass"}
    assert statistics.incomplete(ratings) == 1
    assert [
        statistics.shares(ratings, scale, MODELS)[0].n for scale in ("alignment", "overall")
    ] == [2, 1]
    again = ratings + rated_image("good", "good", "good", "good")
    assert len(latest(again)) == 6
    (found,) = statistics.shares(again, "overall", MODELS)  # models without ratings are left out
    assert found.model == "base" and found.counts["good"] == 1


def test_impossible_answers_are_refused():
    with pytest.raises(Exception, match="axis"):  # also of a type checker
        Rating("ann", 0, "base", "beauty", "good")  # type: ignore[arg-type]
    for right, winner in (("base", "base"), ("srpo", "refl")):
        with pytest.raises(ArenaError, match="a vote needs two models"):
            Vote("ann", 0, "base", right, winner)


def test_win_rates_by_hand():
    votes = [*cast("rt"), Vote("bob", 0, "srpo", "base", "srpo"), cast("tl", "bob")[1]]
    votes += cast("ttl", right="refl")[2:]
    first, second = statistics.win_rates(votes, MODELS)
    assert (first.a, first.b, first.wins, first.losses, first.ties) == ("base", "srpo", 2, 1, 1)
    assert first.rate.value == 2.5 / 4
    assert (first.prompts, first.annotators, first.p_panel) == (2, 2, 1.0)
    assert (second.b, second.rate.value, second.rate.n) == ("refl", 0.0, 1)
    turned = [Vote("ann", 0, "base", "srpo", "srpo"), Vote("ann", 0, "srpo", "base", "base")]
    assert latest(turned) == turned[1:] and statistics.win_rates(turned, MODELS)[0].losses == 1


def test_p_counts_people_and_prompts_and_is_corrected_for_pairs():
    votes = [vote for n in range(50) for vote in cast("rrrr", f"ann {n}")]
    (found,) = statistics.win_rates(votes, MODELS)
    assert found.p > 0.05 and found.rate.low < 0.5, "four prompts"
    votes = planted_votes({"base": 0.0, "srpo": 0.8, "refl": 0.0}, items=25, annotators=8, seed=5)
    found = statistics.win_rates(votes, MODELS)
    assert all(one.p_of_all >= one.p for one in found)
    least = min(one.p for one in found)
    assert min(one.p_of_all for one in found) == pytest.approx(3 * least)


def test_seeds_of_a_prompt_are_not_independent_and_people_weigh_equally():
    votes = planted_votes({"base": 0.0, "srpo": 0.8}, items=20, annotators=8, seed=5)
    seeds = [
        replace(one, item=100 * n + one.item, prompt=str(one.item))
        for one in votes
        for n in range(5)
    ]
    once, often = statistics.win_rates(votes, PAIR)[0], statistics.win_rates(seeds, PAIR)[0]
    assert (once.rate.low, once.panel.low) == pytest.approx((often.rate.low, often.panel.low))
    (a, b), (c, d) = (statistics.rank_models(each, PAIR).covariance for each in (votes, seeds))
    np.testing.assert_allclose([a, b], [c, d], atol=1e-12)
    many = [*cast("r" * 100), *cast("l" * 10, "bob"), *cast("l" * 10, "cid")]
    assert statistics.win_rates(many, PAIR)[0].rate.value == pytest.approx(1 / 3)
    assert statistics.rank_models(many, PAIR).difference(*PAIR).value == pytest.approx(-math.log(2))


def test_ratings_imply_votes_of_the_same_annotator():
    ratings = planted_ratings({"base": -0.5, "srpo": 0.5, "refl": 0.0}, 6, 2, seed=2)
    votes = statistics.implied_votes(ratings, "overall")
    given = statistics.judgements(ratings, "overall")
    levels = {image: LEVELS.index(level) for image, level in given.items()}
    assert len(votes) == 6 * 2 * 3
    for vote in votes:
        left, right = (levels[vote.annotator, vote.item, one] for one in (vote.left, vote.right))
        assert vote.winner == (None if left == right else vote.left if left < right else vote.right)
    two = [Rating("ann", 0, "base", "realism", "fail"), Rating("bob", 0, "srpo", "realism", "good")]
    assert statistics.implied_votes(two, "realism") == []


def test_two_models_have_a_closed_form():
    ranking = statistics.rank_models(cast("rrrrrrrttlll"), PAIR)
    difference = ranking.strengths[1] - ranking.strengths[0]
    assert difference == pytest.approx(math.log((7 + 1) / (3 + 1)), abs=1e-12)
    assert ranking.difference(*PAIR).value == pytest.approx(math.log(2), abs=1e-12)
    assert ranking.order() == ["srpo", "base"] and ranking.prior_ties == 0 and ranking.votes == 12
    assert statistics.elo(0.0) == 1000 and statistics.elo(math.log(10)) == pytest.approx(1400)


def test_copies_of_every_vote_change_nothing():
    votes = planted_votes({"base": 0.0, "srpo": 0.7, "refl": 0.3}, items=30, annotators=1, seed=3)
    copies = [
        Vote(f"copy {n}", one.item, one.left, one.right, one.winner)
        for one in votes
        for n in range(4)
    ]
    once, often = statistics.rank_models(votes, MODELS), statistics.rank_models(copies, MODELS)
    np.testing.assert_allclose(once.strengths, often.strengths, atol=1e-9)
    np.testing.assert_allclose(once.covariance, often.covariance, atol=1e-9)


def test_intervals_cover_planted_strengths():
    """Of four models; of two, see test_simulated_voters."""
    planted, covered = {"base": 0.0, "srpo": 0.9, "refl": -0.4, "draft": 0.3}, []
    for seed in range(40):
        votes = planted_votes(planted, 40, 8, seed, alike=0.3)
        ranking = statistics.rank_models(votes, list(planted))
        for a, b in combinations(planted, 2):
            interval = ranking.difference(a, b)
            covered.append(interval.low <= planted[b] - planted[a] <= interval.high)
    assert 0.92 <= np.mean(covered) <= 0.995


def test_strengths_without_a_finite_maximum():
    votes = cast("r" * 10) + cast("rl" * 5, right="refl")
    ranking = statistics.rank_models(votes, MODELS)
    assert ranking.groups == (("srpo",), ("base", "refl")) and ranking.prior_ties == PRIOR_TIES
    assert np.isfinite(ranking.strengths).all() and ranking.order()[0] == "srpo"
    found = statistics.rank_models(votes[:10], PAIR).difference(*PAIR)
    assert found.value == pytest.approx(math.log(10.5 / 0.5))  # with one artificial tie
    assert found.low < math.log(0.85 / 0.15)  # ten equal wins are no certainty
    assert statistics.rank_models(cast("tr"), PAIR).prior_ties == 0  # a tie connects both ways
    one_item = [vote for n in range(5) for vote in cast("r" if n < 3 else "l", f"ann {n}")]
    assert statistics.rank_models(one_item, PAIR).interval("srpo").low == -math.inf
    with pytest.raises(ArenaError, match="no vote on refl"):
        statistics.rank_models(cast("r"), MODELS)
    with pytest.raises(ArenaError, match="no vote on base"):
        statistics.rank_models(cast("r"), ["base"])


def test_ties_are_not_certainty():
    """They do not scatter; the interval is that of as many votes that were split."""
    tied, split = (
        statistics.rank_models(cast(votes), PAIR).interval("srpo") for votes in ("t" * 6, "lr" * 3)
    )
    assert tied.value == split.value == 0 and 0.5 < tied.high <= split.high < 2
    pairs = combinations(MODELS, 2)
    three = statistics.rank_models(
        [one for a, b in pairs for one in cast("t" * 6, "ann", a, b)], MODELS
    )
    assert all(three.interval(model).high > 0.2 for model in MODELS)
    np.testing.assert_allclose(three.covariance.sum(0), 0, atol=1e-12)
