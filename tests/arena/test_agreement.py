"""Krippendorff's alpha: published examples, limits, and single annotators."""

from itertools import permutations

import numpy as np
import pytest
from planted_answers import cast, planted_ratings, planted_votes

from directalign.arena import statistics
from directalign.arena.records import AXES, LEVELS, Rating, Vote

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
    rows = [line.replace(".", "nan").split() for line in text.strip().splitlines()]
    return np.array(rows, dtype=float).T


def alpha_by_pairs(answers: np.ndarray, metric: statistics.AlphaMetric) -> float:
    """The definition, pair by pair."""
    units = [row[np.isfinite(row)].tolist() for row in answers]
    units = [unit for unit in units if len(unit) > 1]
    values = sorted(value for unit in units for value in unit)

    def distance(one: float, other: float) -> float:
        low, high = min(one, other), max(one, other)
        if metric == "nominal":
            return float(one != other)
        between = sum(low <= value <= high for value in values)
        rank = between - (values.count(low) + values.count(high)) / 2
        return (high - low) ** 2 if metric == "interval" else rank**2 if low != high else 0.0

    observed = sum(
        distance(*pair) / (len(unit) - 1) for unit in units for pair in permutations(unit, 2)
    )
    expected = sum(distance(*pair) for pair in permutations(values, 2)) / (len(values) - 1)
    return 1 - observed / expected


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        (PUBLISHED, "nominal", 0.743),
        (PUBLISHED, "ordinal", 0.815),
        (PUBLISHED, "interval", 0.849),
        (TWO_OBSERVERS, "nominal", 0.095),
    ],
)
def test_published_examples(text, metric, value):
    assert statistics.alpha(matrix(text), metric) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize("metric", statistics.ALPHA_METRICS)
def test_alpha_equals_the_definition(metric):
    rng = np.random.default_rng(7)
    answers = rng.integers(0, 4, (15, 5)).astype(float)
    answers[rng.random(answers.shape) < 0.4] = np.nan
    assert statistics.alpha(answers, metric) == pytest.approx(
        alpha_by_pairs(answers, metric), abs=1e-12
    )


def test_limits():
    opposite = statistics.alpha(np.array([[0.0, 3.0], [3.0, 0.0], [0.0, 3.0]]), "ordinal")
    assert opposite is not None and opposite < 0
    assert statistics.alpha(np.full((5, 3), 2.0), "ordinal") is None
    ratings = [Rating("ann", item, "base", "realism", LEVELS[item % 4]) for item in range(8)]
    single = statistics.agreement(statistics.rated(ratings, "realism"))
    assert single.alpha["ordinal"] is None and single.interval is None
    assert (single.units, single.annotators) == (0, 1)
    assert statistics.agreement(statistics.rated([], "realism")).units == 0


def test_the_interval_holds_alpha_and_narrows():
    widths = []
    for items in (12, 150):
        ratings = planted_ratings({"base": 0.0, "srpo": 0.5}, items, 3, seed=4)
        interval = statistics.agreement(statistics.rated(ratings, "overall")).interval
        assert interval and interval.low < interval.value < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0]


def test_agreement_of_votes_does_not_depend_on_the_sides():
    votes = cast("lr" * 5) + cast("rl" * 5, "bob", "srpo", "base")
    assert statistics.alpha(statistics.voted(votes).answers, "nominal") == pytest.approx(1)
    assert sorted(statistics.voted(cast("t") + cast("r", "bob")).answers[0]) == [0, 1]


def test_an_annotator_who_answers_at_random_stands_out():
    rng, models = np.random.default_rng(1), {"base": -0.3, "srpo": 0.3}
    ratings = planted_ratings(models, 40, 3, seed=9, noise=0.3, at=1000.0)
    for item, model, axis in np.ndindex(40, 2, 4):
        level = LEVELS[rng.integers(4)]
        ratings.append(Rating("clicker", item, [*models][model], AXES[axis], level, 1000.0 + item))
    found = {one.name: one for one in statistics.rating_annotators(ratings)}
    clicker, others = found.pop("clicker"), list(found.values())
    assert clicker.against_others is not None and abs(clicker.against_others) < 0.15
    assert clicker.without is not None and clicker.without > 0.8
    assert all(one.against_others is not None and one.against_others > 0.4 for one in others)
    assert (clicker.seconds, others[0].seconds) == (1.0, 10.0)
    assert (clicker.answers, clicker.items) == (320, 40)
    # where all answered, alpha of all is the mean of each against the others
    panel = statistics.rated(ratings, "realism")
    each = [statistics.against_others(panel, name) or 0.0 for name in panel.annotators]
    assert np.mean(each) == pytest.approx(statistics.alpha(panel.answers, "ordinal"), abs=1e-12)


def test_sides():
    fair = planted_votes({"base": 0.0, "srpo": 1.0}, items=100, annotators=2, seed=0, ties=0.2)
    sides = (("base", "srpo"), ("srpo", "base")) * 15
    lazy = [Vote("lazy", item, *pair, pair[0]) for item, pair in enumerate(sides)]
    found, always_left = statistics.side_bias(fair), statistics.side_bias(lazy)
    assert found and found.p > 0.05
    assert found.wins + found.losses == sum(vote.winner is not None for vote in fair)
    assert always_left and always_left.p < 1e-6 and always_left.value == 1
    assert statistics.side_bias(cast("t")) is None
    by_name = {one.name: one for one in statistics.voting_annotators(fair + lazy)}
    assert by_name["lazy"].commonest == 1.0 and by_name["lazy"].ties == 0
    assert (by_name["annotator 0"].ties or 0) > 0
