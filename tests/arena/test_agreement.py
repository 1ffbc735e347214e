"""Krippendorff's alpha: published examples, limits, and single annotators."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from panels import planted_ratings, planted_votes

from directalign.arena.records import AXES, LEVELS, Rating, Vote
from directalign.arena.statistics import (
    ALPHA_METRICS,
    AlphaMetric,
    against_others,
    agreement,
    alpha,
    rated,
    rating_annotators,
    side_bias,
    voted,
    voting_annotators,
)

PUBLISHED = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""
"""Example C of Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011)."""
TWO_OBSERVERS = "0 1 0 0 0 0 0 0 1 0\n1 1 1 0 0 1 0 0 0 0"
"""His example A: binary, nothing missing."""


def matrix(text: str) -> np.ndarray:
    """Units × observers."""
    return np.array(
        [
            [np.nan if cell == "." else float(cell) for cell in line.split()]
            for line in text.strip().splitlines()
        ]
    ).T


def by_pairs(answers: np.ndarray, metric: AlphaMetric) -> float:
    """Alpha written out pair by pair, as the definition reads."""
    units = [[value for value in row if np.isfinite(value)] for row in answers]
    units = [unit for unit in units if len(unit) > 1]
    everything = sorted(value for unit in units for value in unit)

    def far(one: float, other: float) -> float:
        low, high = min(one, other), max(one, other)
        if metric == "nominal":
            return float(one != other)
        between = (
            sum(low <= value <= high for value in everything)
            - (everything.count(low) + everything.count(high)) / 2
        )
        return (high - low) ** 2 if metric == "interval" else between**2 if low != high else 0.0

    observed = sum(
        far(*pair) / (len(unit) - 1) for unit in units for pair in permutations(unit, 2)
    ) / len(everything)
    expected = (
        sum(far(*pair) for pair in permutations(everything, 2))
        / len(everything)
        / (len(everything) - 1)
    )
    return 1 - observed / expected


@pytest.mark.parametrize(
    ("metric", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_the_published_example(metric: AlphaMetric, value: float) -> None:
    assert alpha(matrix(PUBLISHED), metric) == pytest.approx(value, abs=5e-4)


def test_the_published_binary_example() -> None:
    assert alpha(matrix(TWO_OBSERVERS), "nominal") == pytest.approx(0.095, abs=5e-4)


@pytest.mark.parametrize("metric", ALPHA_METRICS)
def test_equals_the_definition(metric: AlphaMetric) -> None:
    rng = np.random.default_rng(7)
    answers = rng.integers(0, 4, (15, 5)).astype(float)
    answers[rng.random(answers.shape) < 0.4] = np.nan
    assert alpha(answers, metric) == pytest.approx(by_pairs(answers, metric), abs=1e-12)


def test_opposites_are_below_chance() -> None:
    found = alpha(np.array([[0.0, 3.0], [3.0, 0.0], [0.0, 3.0]]), "ordinal")
    assert found is not None and found < 0


def test_nothing_to_agree_on_is_not_a_number() -> None:
    assert alpha(np.full((5, 3), 2.0), "ordinal") is None
    alone = agreement(
        rated(
            [Rating("ann", item, "base", "realism", LEVELS[item % 4]) for item in range(8)],
            "realism",
        )
    )
    assert (
        alone.alpha["ordinal"] is None
        and alone.interval is None
        and (alone.units, alone.annotators) == (0, 1)
    )
    assert agreement(rated([], "realism")).units == 0


def test_the_interval_holds_alpha_and_narrows() -> None:
    few, many = (
        agreement(rated(planted_ratings({"base": 0.0, "srpo": 0.5}, items, 3, seed=4), "overall"))
        for items in (12, 150)
    )
    assert few.interval and many.interval
    for found in (few.interval, many.interval):
        assert found.low < found.value < found.high
    assert many.interval.high - many.interval.low < few.interval.high - few.interval.low


def test_votes_agree_whatever_side_they_saw() -> None:
    votes = [
        Vote(name, item, *sides, "srpo" if item % 2 else "base")
        for item in range(10)
        for name, sides in (("ann", ("base", "srpo")), ("bob", ("srpo", "base")))
    ]
    assert alpha(voted(votes).answers, "nominal") == pytest.approx(1)
    tied = voted([Vote("ann", 0, "base", "srpo", None), Vote("bob", 0, "base", "srpo", "srpo")])
    assert sorted(tied.answers[0]) == [0, 1]


# --- single annotators ---


def with_a_clicker(items: int = 40) -> list[Rating]:
    """Three careful annotators and one who answers at random."""
    rng = np.random.default_rng(1)
    careful = planted_ratings({"base": -0.3, "srpo": 0.3}, items, 3, seed=9, noise=0.3, at=1000.0)
    clicker = [
        Rating("clicker", item, model, axis, LEVELS[rng.integers(4)], 1000.0 + item)
        for item in range(items)
        for model in ("base", "srpo")
        for axis in AXES
    ]
    return careful + clicker


def test_who_answers_at_random_stands_out() -> None:
    found = {one.name: one for one in rating_annotators(with_a_clicker())}
    clicker, others = found.pop("clicker"), list(found.values())
    assert clicker.against_others is not None and abs(clicker.against_others) < 0.15
    assert clicker.without is not None and clicker.without > 0.8
    assert all(one.against_others is not None and one.against_others > 0.4 for one in others)
    assert (clicker.seconds, others[0].seconds) == (1.0, 10.0) and (
        clicker.answers,
        clicker.items,
    ) == (320, 40)


def test_alpha_of_all_is_the_mean_of_each_against_the_others_where_all_answered() -> None:
    panel = rated(with_a_clicker(), "realism")
    each = [against_others(panel, name) for name in panel.annotators]
    assert np.mean([one for one in each if one is not None]) == pytest.approx(
        alpha(panel.answers, "ordinal"), abs=1e-12
    )


def test_an_annotator_alone_is_held_against_nobody() -> None:
    (alone,) = rating_annotators([Rating("ann", 0, "base", "realism", "good")])
    assert (
        alone.against_others is None
        and alone.without is None
        and alone.seconds is None
        and alone.commonest == 1.0
    )


def test_sides() -> None:
    fair = planted_votes({"base": 0.0, "srpo": 1.0}, items=100, annotators=2, seed=0, ties=0.2)
    lazy = [
        Vote("lazy", item, "base", "srpo", "base")
        if item % 2
        else Vote("lazy", item, "srpo", "base", "srpo")
        for item in range(30)
    ]
    found = side_bias(fair)
    assert (
        found
        and found.p > 0.05
        and found.left + found.right == sum(vote.winner is not None for vote in fair)
    )
    always_left = side_bias(lazy)
    assert always_left and always_left.p < 1e-6 and always_left.rate.value == 1
    assert side_bias([Vote("ann", 0, "base", "srpo", None)]) is None
    by_name = {one.name: one for one in voting_annotators(fair + lazy)}
    assert (
        by_name["lazy"].commonest == 1.0
        and by_name["lazy"].ties == 0
        and (by_name["annotator 0"].ties or 0) > 0
    )
