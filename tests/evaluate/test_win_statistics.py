"""Wins, the sign test and Holm's correction: algebra, exact arithmetic, and simulations with planted effects."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from directalign.evaluate.intervals import bootstrap, bootstrap_rate, resamples_of
from directalign.evaluate.wins import holm, sign_test, wins

PROMPTS, SEEDS = 60, 2
GROUPS = [place // SEEDS for place in range(PROMPTS * SEEDS)]
SIMULATIONS = 600


def exactly(won: int, lost: int) -> float:
    """The two-sided p in whole numbers."""
    n, fewer = won + lost, min(won, lost)
    return float(min(Fraction(1), Fraction(2 * sum(math.comb(n, k) for k in range(fewer + 1)), 2**n)))


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (0, 5), (8, 1), (3, 3), (3, 4), (50, 30), (0, 60), (700, 800), (1480, 1020), (1900, 100)])
def test_the_sign_test_is_exact(won: int, lost: int) -> None:
    assert sign_test(won, lost) == pytest.approx(exactly(won, lost), rel=1e-11) == sign_test(lost, won)


def test_the_sign_test_of_millions_is_the_normal_one() -> None:
    z = (2_000 - 0.5) / math.sqrt(4e6 / 4)
    assert sign_test(2_000_000 + 2_000, 2_000_000 - 2_000) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-4)
    assert sign_test(10_000_000, 0) == 0.0, "smaller than any float64"
    with pytest.raises(ValueError, match="counts"):
        sign_test(3, -1)


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0] and holm([0.2]) == [0.2]


def test_a_tie_is_half_a_win_and_no_vote() -> None:
    a, b = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 4.0])
    found = wins(a, b, list(range(4)), resamples_of(range(4)))
    assert (found["value"], found["wins"], found["losses"], found["ties"], found["n"]) == (0.625, 2, 1, 1, 4)
    assert found["p"] == sign_test(2, 1) and found["low"] <= 0.625 <= found["high"]
    other = wins(b, a, list(range(4)), resamples_of(range(4)))
    assert other["value"] == 1 - found["value"] and other["p"] == found["p"] and other["low"] == pytest.approx(1 - found["high"])


def test_a_prompt_votes_once() -> None:
    b, groups = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 1.0]), ["a", "a", "a", "b", "c", "c"]
    found = wins(torch.zeros(6), b, groups, resamples_of(groups))
    assert found["wins"] == 4 and found["p"] == sign_test(2, 1)


def simulated(effect: float, generator: torch.Generator, seeds: int = SEEDS) -> torch.Tensor:
    """Differences of the images of two models: an effect, what is peculiar to a prompt, and noise."""
    prompt = torch.randn(PROMPTS, generator=generator, dtype=torch.float64).repeat_interleave(seeds)
    own = torch.randn(PROMPTS * seeds, generator=generator, dtype=torch.float64)
    return effect + 0.7 * prompt + 0.7 * own


@pytest.mark.parametrize("effect", [0.0, 0.4])
def test_intervals_cover_planted_effects(effect: float) -> None:
    generator, drawn = torch.Generator().manual_seed(7), resamples_of(GROUPS, resamples=1000)
    chance = 0.5 * math.erfc(-effect / math.sqrt(0.98) / math.sqrt(2))
    covered, won = 0, 0
    for _ in range(SIMULATIONS):
        difference = simulated(effect, generator)
        mean, rate = bootstrap(difference, drawn), bootstrap_rate((difference > 0).double(), drawn)
        covered += mean["low"] <= effect <= mean["high"]
        won += rate["low"] <= chance <= rate["high"]
    assert 0.93 < covered / SIMULATIONS < 0.97 and 0.93 < won / SIMULATIONS < 0.97


def test_intervals_that_take_images_for_independent_cover_less() -> None:
    generator, blind = torch.Generator().manual_seed(8), resamples_of(range(len(GROUPS)))
    missed = sum(not found["low"] <= 0 <= found["high"] for found in (bootstrap(simulated(0.0, generator), blind) for _ in range(400)))
    assert missed / 400 > 0.08


def test_the_sign_test_rejects_at_its_level_and_not_more_for_copies_of_a_prompt() -> None:
    generator, drawn = torch.Generator().manual_seed(9), resamples_of(range(PROMPTS), resamples=20)
    level = max(exactly(k, PROMPTS - k) for k in range(PROMPTS // 2) if exactly(k, PROMPTS - k) <= 0.05)
    single = [wins(torch.zeros(PROMPTS), each, list(range(PROMPTS)), drawn)["p"] for each in torch.randn(1000, PROMPTS, generator=generator)]
    assert sum(p <= 0.05 for p in single) / 1000 == pytest.approx(level, abs=3.5 * math.sqrt(level * (1 - level) / 1000))
    differences, groups = [simulated(0.0, generator, seeds=5) for _ in range(1000)], [place // 5 for place in range(5 * PROMPTS)]
    many = resamples_of(groups, resamples=20)
    by_prompt = [wins(torch.zeros(len(each)).double(), each, groups, many)["p"] for each in differences]
    by_image = [sign_test(int((each > 0).sum()), int((each < 0).sum())) for each in differences]
    assert sum(p <= 0.05 for p in by_prompt) / 1000 <= 0.055 < 0.15 < sum(p <= 0.05 for p in by_image) / 1000
