"""Formatting of numbers, intervals and p-values."""

from __future__ import annotations

import pytest

from directalign.report.format import (
    counted,
    cut,
    decimals_for,
    fixed,
    interval,
    p_value,
    shown,
    span,
)


@pytest.mark.parametrize(
    ("width", "decimals"),
    [(0.5, 2), (0.05, 3), (0.013, 3), (20.0, 0), (300.0, 0), (0.0, 3), (1e-9, 6)],
)
def test_decimals_show_two_digits_of_a_step(width: float, decimals: int):
    assert decimals_for(width) == decimals


def test_intervals_have_the_digits_that_they_deserve():
    assert interval({"value": 0.85917, "low": 0.85411, "high": 0.86433}) == (
        "0.8592",
        "0.8541–0.8643",
    )
    assert interval({"value": 22.671, "low": 20.2, "high": 25.1}) == ("22.7", "20.2–25.1")
    assert interval({"value": -0.013, "low": -0.041, "high": 0.011}) == ("−0.013", "−0.041 – 0.011")
    assert interval({"value": 0.82, "low": 0.768, "high": 0.862}, percent=True) == (
        "82\u00a0%",
        "77–86",
    )
    assert interval({"value": 0.1108, "low": 0.1093, "high": 0.1123}, percent=True) == (
        "11.1\u00a0%",
        "10.9–11.2",
    )


def test_what_has_no_interval_or_no_value():
    assert interval(0.5) == ("0.5", "") and interval({"value": 0.5, "n": 3}, percent=True) == (
        "50\u00a0%",
        "",
    )
    for missing in (None, "0.5", {}, {"low": 0.1}, float("nan")):
        assert interval(missing) == ("–", "")


def test_a_single_image_has_no_interval():
    alone = {"value": 0.5, "low": 0.5, "high": 0.5, "n": 1}
    assert interval(alone) == ("0.5", "") and interval(alone | {"n": 2})[1] == "0.500–0.500"


def test_signs():
    assert [fixed(value, 2) for value in (-0.001, 0.0, -1.5, 2.0)] == [
        "0.00",
        "0.00",
        "−1.50",
        "2.00",
    ]
    assert fixed(0.5, 2, sign=True) == "+0.50" and fixed(-0.12, 2, percent=True) == "−12\u00a0%"


def test_p_values():
    assert [p_value(p) for p in (1.0, 0.996, 0.5, 0.041, 0.0041, 0.0004, None, "x")] == [
        "p = 1",
        "p = 1",
        "p = .50",
        "p = .04",
        "p = .004",
        "p < .001",
        "",
        "",
    ]


def test_counts_and_cuts():
    assert [counted(n, "pair") for n in (0, 1, 12000)] == ["0 pairs", "1 pair", "12,000 pairs"]
    assert cut("abcdef", 4) == "abc…" and cut("abcd", 4) == "abcd"
    assert shown({"value": 0.5}) == "50\u00a0%" and span({"value": 0.5}) == "" and span(3) == ""
