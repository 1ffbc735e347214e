"""Intervals against published values, closed forms and their symmetries."""

from __future__ import annotations

import pytest
import torch

from directalign.evaluate.intervals import Z_95, _student, bootstrap, bootstrap_rate, rate, resamples_of, wilson


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


def alone(n: int) -> range:
    """Every sample its own cluster."""
    return range(n)


def test_a_mean_is_exact_where_nothing_varies():
    found = bootstrap(torch.full((50,), 0.25, dtype=torch.float64), resamples_of(alone(50)))
    assert (found["value"], found["low"], found["high"], found["n"]) == pytest.approx((0.25, 0.25, 0.25, 50))


def test_of_many_samples_it_is_the_normal_interval():
    values = torch.randn(400, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    found, half = bootstrap(values, resamples_of(alone(400))), Z_95 * values.std().item() / 20
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.06)
    assert found["low"] < found["value"] < found["high"]
    assert found == bootstrap(values, resamples_of(alone(400))), "the same data, the same answer"


def test_of_few_samples_it_is_as_wide_as_students():
    values = torch.randn(8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = bootstrap(values, resamples_of(alone(8), resamples=20_000))
    assert (found["high"] - found["low"]) / 2 == pytest.approx(2.364624 * values.std().item() / 8**0.5, rel=0.12)


@pytest.mark.parametrize(("freedom", "published"), [(4, 2.776445), (9, 2.262157), (29, 2.045230), (255, 1.969311)])
def test_students_quantile_equals_the_tables(freedom: int, published: float):
    assert _student(freedom) == pytest.approx(published, rel=3e-3)


def test_copies_of_a_prompt_are_no_evidence():
    values = torch.randn(40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    once = bootstrap(values, resamples_of(alone(40)))
    copied = bootstrap(values.repeat_interleave(5), resamples_of([place // 5 for place in range(200)]))
    assert (copied["low"], copied["high"]) == pytest.approx((once["low"], once["high"]), abs=1e-12) and copied["n"] == 200
    blind = bootstrap(values.repeat_interleave(5), resamples_of(alone(200)))
    assert blind["high"] - blind["low"] < 0.6 * (once["high"] - once["low"])


def test_clusters_weigh_by_their_samples():
    drawn = resamples_of(["a", "b", "b", "c"])
    assert drawn.clusters == 3 and torch.equal(drawn.counts.sum(1), torch.full((2000,), 3.0, dtype=torch.float64))
    means = drawn.means(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    only_b = drawn.counts[:, 1] == 3
    assert torch.equal(means[only_b], torch.ones_like(means[only_b]))


def test_samples_of_one_prompt_stand_for_themselves():
    values = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    assert bootstrap(values, resamples_of(["a"] * 4)) == bootstrap(values, resamples_of(alone(4)))


def test_where_all_say_alike_the_interval_is_wilsons_over_prompts():
    found = bootstrap_rate(torch.ones(20), resamples_of([place // 2 for place in range(20)]))
    assert (found["low"], found["high"], found["n"]) == (wilson(1.0, 10)["low"], 1.0, 20)
