"""Tables that Markdown reads, and numbers that say what they are."""

from __future__ import annotations

import math

import pytest

from directalign.studies.showing.tables import markdown, number, with_interval


def test_a_table_has_a_head_a_rule_and_its_rows() -> None:
    assert markdown(["arm", "photo"], [["srpo", "0.8"], ["a|b", "–"]]).splitlines() == [
        "| arm | photo |",
        "| --- | ---: |",
        "| srpo | 0.8 |",
        "| a\\|b | – |",
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs 2 cells \(arm, photo\), got \['srpo'\]"):
        markdown(["arm", "photo"], [["srpo"]])


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1.234, 2, "1.23"),
        (-0.5, 1, "−0.5"),
        (-0.004, 2, "0.00"),
        (12345.6, 0, "12 346"),
        (None, 2, "–"),
        (math.nan, 2, "–"),
        (math.inf, 2, "–"),
        (0, 0, "0"),
    ],
)
def test_numbers(value: int | float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_intervals_in_their_unit() -> None:
    rate = {"value": 0.82, "low": 0.777, "high": 0.861, "n": 5}
    assert with_interval(rate) == "0.82 (0.78–0.86)"
    assert with_interval(rate, 0, percent=True) == "82 % (78–86)"
    assert (
        with_interval({"value": -0.02, "low": -0.05, "high": 0.01, "n": 5})
        == "−0.02 (−0.05 to 0.01)"
    )


def test_what_is_not_known_is_a_dash_and_no_interval_is_made_up() -> None:
    assert with_interval(None) == "–"
    assert with_interval({"value": None, "low": None, "high": None, "n": 0}, percent=True) == "–"
    assert (
        with_interval({"value": 0.5, "low": None, "high": None, "n": 1}, 0, percent=True) == "50 %"
    )
    assert with_interval({"value": 3.0, "low": math.nan, "high": math.nan, "n": 1}, 1) == "3.0"
