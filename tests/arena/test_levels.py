"""Levels: the overall one by the paper's rule, percentages that sum to one, intervals that know that annotators see the same items."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from panels import MODELS, planted_ratings

from directalign.arena.intervals import holm, percentile, rate, sign_test, t_95, wilson
from directalign.arena.levels import SCALES, incomplete, judgements, overall, shares
from directalign.arena.records import AXES, LEVELS, ArenaError, Rating, latest_ratings


def image(*levels: str, annotator: str = "ann", item: int = 0, model: str = "base") -> list[Rating]:
    return [Rating(annotator, item, model, axis, level) for axis, level in zip(AXES, levels, strict=True)]  # type: ignore[arg-type]


def test_overall_is_the_lowest_of_all_axes_for_every_answer_there_is() -> None:
    for levels in product(LEVELS, repeat=len(AXES)):
        found = overall(dict(zip(AXES, levels, strict=True)))
        assert (found == "excellent") == (set(levels) == {"excellent"})  # the paper's rule
        assert (found == "fail") == ("fail" in levels)
        assert found in levels and all(LEVELS.index(found) >= LEVELS.index(level) for level in levels)
        assert judgements(image(*levels), "overall")[0].level == found


def test_an_image_lacking_an_axis_has_no_overall_level() -> None:
    with pytest.raises(ArenaError, match="detail, aesthetics not rated"):
        overall({"alignment": "good", "realism": "good"})
    ratings = image("good", "good", "pass", "good") + image("good", "good", "pass", "good", item=1)[:3]
    assert [one.item for one in judgements(ratings, "overall")] == [0] and incomplete(ratings) == 1
    assert shares(ratings, "alignment", ["base"])[0].n == 2 and shares(ratings, "overall", ["base"])[0].n == 1


def test_the_latest_rating_counts() -> None:
    ratings = [*image("fail", "fail", "fail", "fail"), *image("good", "good", "good", "good")]
    assert len(latest_ratings(ratings)) == 4 and shares(ratings, "overall", ["base"])[0].counts["good"] == 1


def test_shares_sum_to_one() -> None:
    ratings = planted_ratings({"base": -0.3, "srpo": 0.4, "refl": 0.0}, items=15, annotators=3, seed=1)
    for scale in SCALES:
        found = shares(ratings, scale, MODELS)
        assert [one.model for one in found] == list(MODELS)
        for one in found:
            assert sum(share.value for share in one.shares.values()) == pytest.approx(1, abs=1e-12)
            assert one.n == 45 and one.items == 15 and one.annotators == 3
            assert all(0 <= share.low <= share.value <= share.high <= 1 for share in one.shares.values())


def test_models_without_ratings_are_left_out() -> None:
    assert [one.model for one in shares(image("good", "good", "good", "good"), "overall", MODELS)] == ["base"]


def test_a_rating_of_something_else_is_refused() -> None:
    with pytest.raises(Exception, match="axis"):
        Rating("ann", 0, "base", "beauty", "good")  # type: ignore[arg-type]


# --- intervals --------------------------------------------------------------------------------------------------------


def coverage(chance: float, items: int, annotators: int, alike: float, runs: int = 300) -> float:
    """Share of intervals that hold `chance`, from annotators who repeat the item's own answer with chance `alike`."""
    covered = 0
    for seed in range(runs):
        rng = np.random.default_rng((seed, items, annotators))
        common = rng.random((items, 1)) < chance
        answers = np.where(rng.random((items, annotators)) < alike, common, rng.random((items, annotators)) < chance)
        found = rate(answers.sum(1).astype(float), np.full(items, float(annotators)))
        covered += found.low <= chance <= found.high
    return covered / runs


def test_rates_cover_what_was_planted() -> None:
    found = [coverage(0.5, 40, 1, 0.0), coverage(0.1, 60, 5, 0.0), coverage(0.3, 30, 5, 0.7), coverage(0.9, 50, 3, 1.0)]
    assert min(found) >= 0.92 and 0.94 <= np.mean(found) <= 0.98


def test_a_rare_rate_is_covered_though_its_hits_come_together() -> None:
    """Three hits on one picture look like three, until it is known how alike the answers are."""
    found = [coverage(0.02, 40, 10, 0.9), coverage(0.05, 20, 10, 0.9), coverage(0.95, 40, 10, 0.9), coverage(0.02, 100, 10, 0.5)]
    assert min(found) >= 0.92


def test_repeated_answers_do_not_narrow_a_rate() -> None:
    hits = (np.arange(30) % 3 == 0).astype(float)
    once, often = rate(hits, np.ones(30)), rate(10 * hits, np.full(30, 10.0))
    assert (once.low, once.high) == pytest.approx((often.low, often.high)) and (once.n, often.n) == (30, 300)


def test_rates_are_honest_at_the_ends() -> None:
    all_of_them = rate(np.full(20, 5.0), np.full(20, 5.0))
    assert all_of_them.high == 1 and all_of_them.low == pytest.approx(wilson(1.0, 20.0, t_95(19))[0]) and all_of_them.low < 0.87
    assert (rate(np.array([2.0]), np.array([3.0])).low, rate(np.array([2.0]), np.array([3.0])).high) == (0.0, 1.0)
    half = rate(np.ones(20), np.full(20, 2.0))  # every item split evenly: no scatter, but only forty answers
    assert (half.low, half.high) == pytest.approx(wilson(0.5, 40.0, t_95(19)))


def test_students_t() -> None:
    """Against scipy's table, to the percent that is promised."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is not needed by the package")
    for freedom in (3, 5, 10, 30, 500):
        assert t_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_sign_test_and_holm() -> None:
    assert sign_test(0, 0) == 1.0 and sign_test(5, 5) == 1.0
    assert sign_test(8, 1) == sign_test(1, 8) == pytest.approx(2 * 10 / 512)
    assert 0 < sign_test(2000, 1700) < 1e-5
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_number_undefined_on_many_resamples_has_no_interval() -> None:
    drawn = np.linspace(0, 1, 1000)
    assert percentile(0.5, drawn, 7) is not None
    drawn[:100] = np.nan
    assert percentile(0.5, drawn, 7) is None
