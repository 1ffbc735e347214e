"""Formatting of numbers, intervals and p-values."""

import pytest

from directalign.report.format import counted, cut, fixed, interval, number, p_value, written


def test_numbers():
    texts = [written(value) for value in (0.05, -1.5, 12345.0, 0.0)]
    assert texts == ["0.05", "−1.5", "12,345", "0"]
    assert written(0.25, percent=True) == "25\u00a0%"
    texts = [fixed(value, 2) for value in (-0.001, 0.0, -1.5, 2.0)]
    assert texts == ["0.00", "0.00", "−1.50", "2.00"]
    assert fixed(-0.12, 2, percent=True) == "−12\u00a0%"
    values = (1, {"value": 0.5}, True, "3", None, float("nan"), float("inf"), {})
    assert [number(value) for value in values] == [1.0, 0.5, *[None] * 6]


@pytest.mark.parametrize(
    ("ends", "percent", "texts"),
    [
        ((0.85917, 0.85411, 0.86433), False, ("0.8592", "0.8541–0.8643")),
        ((22.671, 20.2, 25.1), False, ("22.7", "20.2–25.1")),
        ((-0.013, -0.041, 0.011), False, ("−0.013", "−0.041 – 0.011")),
        ((0.82, 0.768, 0.862), True, ("82\u00a0%", "77–86")),
        ((0.1108, 0.1093, 0.1123), True, ("11.1\u00a0%", "10.9–11.2")),
    ],
)
def test_the_width_of_an_interval_sets_its_digits(ends, percent, texts):
    assert interval(dict(zip(("value", "low", "high"), ends, strict=True)), percent) == texts


def test_p_values_counts_and_cuts():
    texts = {1.0: "p = 1", 0.996: "p = 1", 0.5: "p = .50", 0.041: "p = .04", 0.0041: "p = .004"}
    texts |= {0.0004: "p < .001", None: "", "x": ""}
    assert {p: p_value(p) for p in texts} == texts
    assert [counted(n, "pair") for n in (0, 1, 12000)] == ["0 pairs", "1 pair", "12,000 pairs"]
    assert cut("abcdef", 4) == "abc…" and cut("abcd", 4) == "abcd"
