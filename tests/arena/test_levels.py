"""Levels: the overall one by the paper's rule, percentages that sum to one."""

from __future__ import annotations

from itertools import product

import pytest
from panels import MODELS, planted_ratings

from directalign.arena.records import AXES, LEVELS, ArenaError, Rating, latest_ratings
from directalign.arena.statistics import SCALES, incomplete, judgements, overall, shares


def image(*levels: str, annotator: str = "ann", item: int = 0, model: str = "base") -> list[Rating]:
    return [
        Rating(annotator, item, model, axis, level)
        for axis, level in zip(AXES, levels, strict=True)
    ]  # type: ignore[arg-type]


def test_overall_is_the_lowest_of_all_axes_for_every_answer_there_is() -> None:
    for levels in product(LEVELS, repeat=len(AXES)):
        found = overall(dict(zip(AXES, levels, strict=True)))
        assert (found == "excellent") == (set(levels) == {"excellent"})  # the paper's rule
        assert (found == "fail") == ("fail" in levels)
        assert found in levels and all(
            LEVELS.index(found) >= LEVELS.index(level) for level in levels
        )
        assert judgements(image(*levels), "overall")[0].level == found


def test_an_image_lacking_an_axis_has_no_overall_level() -> None:
    with pytest.raises(ArenaError, match="detail, aesthetics not rated"):
        overall({"alignment": "good", "realism": "good"})
    ratings = (
        image("good", "good", "pass", "good") + image("good", "good", "pass", "good", item=1)[:3]
    )
    assert [one.item for one in judgements(ratings, "overall")] == [0] and incomplete(ratings) == 1
    assert (
        shares(ratings, "alignment", ["base"])[0].n == 2
        and shares(ratings, "overall", ["base"])[0].n == 1
    )


def test_the_latest_rating_counts() -> None:
    ratings = [*image("fail", "fail", "fail", "fail"), *image("good", "good", "good", "good")]
    assert (
        len(latest_ratings(ratings)) == 4
        and shares(ratings, "overall", ["base"])[0].counts["good"] == 1
    )


def test_shares_sum_to_one() -> None:
    ratings = planted_ratings(
        {"base": -0.3, "srpo": 0.4, "refl": 0.0}, items=15, annotators=3, seed=1
    )
    for scale in SCALES:
        found = shares(ratings, scale, MODELS)
        assert [one.model for one in found] == list(MODELS)
        for one in found:
            assert sum(share.value for share in one.shares.values()) == pytest.approx(1, abs=1e-12)
            assert one.n == 45 and one.items == 15 and one.annotators == 3
            assert all(
                0 <= share.low <= share.value <= share.high <= 1 for share in one.shares.values()
            )


def test_models_without_ratings_are_left_out() -> None:
    assert [
        one.model for one in shares(image("good", "good", "good", "good"), "overall", MODELS)
    ] == ["base"]


def test_a_rating_of_something_else_is_refused() -> None:
    with pytest.raises(Exception, match="axis"):
        Rating("ann", 0, "base", "beauty", "good")  # type: ignore[arg-type]
