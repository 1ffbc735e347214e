"""Intervals over seeds against values worked out by hand; runs read off between measurements."""

from __future__ import annotations

import math
from typing import Any

import pytest

from directalign.studies.comparing.statistics import (
    at_budget,
    at_level,
    mean_interval,
    mean_of,
    paired_over_seeds,
    ratio_interval,
)


def test_one_seed_has_no_interval_and_none_is_an_error() -> None:
    assert mean_interval([0.25]) == {"value": 0.25, "low": None, "high": None, "n": 1}
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_pairing_takes_out_what_the_seeds_share() -> None:
    shared = [10.0, -3.0, 55.0]
    ours = [base + gain for base, gain in zip(shared, (1.0, 2.0, 3.0), strict=True)]
    assert paired_over_seeds(ours, shared) == pytest.approx(dict(mean_interval([1.0, 2.0, 3.0])))
    with pytest.raises(ValueError, match="2 and 1 values are not pairs"):
        paired_over_seeds([1.0, 2.0], [1.0])


def test_a_ratio_is_the_geometric_mean_with_an_interval_on_the_logarithm() -> None:
    # log-ratios ln 2 and ln 8: mean ln 4, standard deviation ln 4 / √2, standard error ln 4 / 2, t(1) = 12.7062
    found = ratio_interval([2.0, 16.0], [1.0, 2.0])
    half = 12.70620474 * math.log(4) / 2
    assert found == pytest.approx(
        {"value": 4.0, "low": 4 * math.exp(-half), "high": 4 * math.exp(half), "n": 2}, rel=1e-8
    )
    assert ratio_interval([3.0], [1.5]) == {
        "value": pytest.approx(2.0),
        "low": None,
        "high": None,
        "n": 1,
    }
    with pytest.raises(ValueError, match="positive"):
        ratio_interval([1.0], [0.0])


# --- runs where they are equal ----------------------------------------------------------------------------------------


def run(*points: tuple[int, float, float]) -> list[dict[str, Any]]:
    return [
        {
            "arm": "a",
            "seed": 3,
            "step": step,
            "photo_rate": photo,
            "seconds": seconds,
            "machine": "m",
        }
        for step, photo, seconds in points
    ]


ROWS = run((0, 0.1, 0.0), (10, 0.5, 4.0), (20, 0.4, 8.0), (30, 0.9, 12.0))


def test_a_level_is_read_off_the_straight_line_where_it_is_first_reached() -> None:
    assert at_level(ROWS, "photo_rate", 0.3) == pytest.approx(
        {"arm": "a", "seed": 3, "step": 5, "photo_rate": 0.3, "seconds": 2.0, "machine": "m"}
    )
    late = at_level(ROWS[::-1], "photo_rate", 0.7)  # whatever the order of the rows
    assert late is not None and (late["step"], late["seconds"]) == pytest.approx((26.0, 10.4))


def test_a_level_is_met_exactly_at_a_measurement_and_from_the_start() -> None:
    assert at_level(ROWS, "photo_rate", 0.5) == ROWS[1]
    assert at_level(ROWS, "photo_rate", 0.05) == ROWS[0]


def test_a_level_that_is_never_reached_is_none() -> None:
    assert at_level(ROWS, "photo_rate", 0.91) is None
    assert at_level(ROWS, "diversity", 0.1) is None
    assert at_level([], "photo_rate", 0.1) is None


def test_a_number_that_one_neighbour_lacks_is_left_out() -> None:
    rows = [ROWS[0] | {"reward": 0.2}, ROWS[1] | {"reward": None}, ROWS[3] | {"other": 1.0}]
    found = at_level(rows, "photo_rate", 0.3)
    assert found is not None and "reward" not in found and "other" not in found


def test_a_budget_is_read_off_a_key_that_only_rises() -> None:
    found = at_budget(ROWS, "seconds", 10.0)
    assert found is not None and (found["step"], found["photo_rate"]) == pytest.approx((25.0, 0.65))
    assert at_budget(ROWS, "seconds", 12.1) is None
    with pytest.raises(ValueError, match="photo_rate falls during the run"):
        at_budget(ROWS, "photo_rate", 0.3)


def test_the_interval_of_a_rate_ends_at_its_bounds() -> None:
    """0.9, 1.0, 1.0: mean 29/30, t interval beyond 1; a drift of the same values keeps its ends."""
    values = [0.9, 1.0, 1.0]
    free = mean_interval(values)
    assert free["high"] is not None and free["high"] > 1
    assert mean_of("photo_rate", values) == {**free, "high": 1.0}
    assert mean_of("style_anime", [0.0, 0.1, 0.0])["low"] == 0.0
    assert mean_of("color_drift", values) == free and mean_of("content", [0.5]) == mean_interval(
        [0.5]
    )
