"""Intervals against published values, closed forms and their symmetries."""

from __future__ import annotations

import pytest
import torch

from directalign.evaluate.intervals import Z_95, paired_difference, rate, wilson, win_rate


def test_wilson_known_values():
    # Newcombe (1998), table I: 81/263, 15/148, 0/20 by the score method without continuity correction
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        found = wilson(successes / n, n)
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_solve_the_score_equation():
    found = wilson(0.3, 50)
    for end in (found["low"], found["high"]):
        assert (0.3 - end) ** 2 == pytest.approx(Z_95**2 * end * (1 - end) / 50, rel=1e-12)


def test_wilson_mirrors_and_stays_inside():
    few, many = wilson(0.1, 40), wilson(0.9, 40)
    assert few["low"] == pytest.approx(1 - many["high"], abs=1e-12)
    assert wilson(1.0, 7)["high"] == 1.0 and wilson(0.0, 7)["low"] == 0.0


def test_wilson_refuses_what_is_no_rate():
    for bad in ((1.2, 10), (-0.1, 10), (0.5, 0)):
        with pytest.raises(ValueError, match="rate in"):
            wilson(*bad)


def test_rate_counts_answers():
    assert rate(torch.tensor([1.0, 0.0, 1.0, 1.0])) == wilson(0.75, 4)


def test_paired_difference_is_exact_where_nothing_varies():
    before = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = paired_difference(before, before + 0.25)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.25, 0.25, 0.25))


def test_paired_difference_close_to_normal_theory():
    generator = torch.Generator().manual_seed(2)
    before, after = torch.randn(2, 400, generator=generator, dtype=torch.float64)
    found = paired_difference(before, after + 0.5)
    half = Z_95 * (after - before).std().item() / 20
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.08)
    assert found["low"] < found["value"] < found["high"]
    assert found == paired_difference(before, after + 0.5)


def test_ties_are_half_a_win():
    assert win_rate(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 4.0]))["value"] == 0.625
