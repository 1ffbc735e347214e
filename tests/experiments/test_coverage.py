"""The planted truth, and simulated comparisons that give the numbers of a real one."""

import pytest
import torch

from directalign.diffusion.rng import generator_for
from directalign.evaluation.results import summarise
from directalign.metrics import JUDGED
from experiments import coverage
from experiments.coverage import KEYS, NUMBERS, Bank, Planted, bits, lines_of

MANY = Planted("many", "many", (0.3, 0.8), (0.9, 0.6), prompts=20_000, likeness=0.5)
CLEAR = torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]])
"""Judges without fault: [photo?, right?, number]."""
ABOUT = {number: JUDGED[number] for number in NUMBERS}


@pytest.fixture
def bank():
    return Bank(["x", "y"], CLEAR[None, :, :, None, :].expand(2, 2, 2, 3, 2))


def test_rates_are_those_planted_and_images_of_a_prompt_are_alike():
    drawn = bits(MANY.photo, MANY, generator_for(0)).double()
    assert drawn.shape == (2, 40_000)
    assert torch.allclose(drawn.mean(1), torch.tensor(MANY.photo, dtype=torch.float64), atol=0.01)
    first, second = drawn[:, ::2], drawn[:, 1::2]

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    within, between = correlation(first[1], second[1]), correlation(first[0], first[1])
    assert within > between + 0.05 > 0.1
    assert abs(correlation(first[1, :-1], second[1, 1:])) < 0.02
    before, after = drawn
    won = ((after > before).double() + (after == before) / 2).mean()
    assert won == pytest.approx((1 + 0.8 - 0.3) / 2, abs=0.01)


def test_covering_intervals_and_significant_tests_are_counted(bank):
    planted = Planted("p", "p", (0.0, 1.0), (0.5, 0.5), prompts=20)
    found = summarise(KEYS, lines_of(planted, bank, generator_for(0)), ABOUT)
    photo = {(of, "photo_rate") for of in coverage.OF}
    tests = {("test", "photo_rate"), ("test", "all")}
    assert (photo | tests) - {("win", "photo_rate")} <= set(coverage.hits_of(found, planted))
    wrong = Planted("w", "w", (0.0, 0.5), (0.5, 0.5), prompts=20)
    assert not photo & set(coverage.hits_of(found, wrong))


def test_intervals_over_prompts_cover_the_truth_and_over_images_do_not(bank):
    counts = []
    for by_image in (False, True):
        alike = {"prompts": 20, "seeds": 8, "likeness": 0.8, "by_image": by_image}
        planted = Planted("p", "p", (0.5, 0.5), (0.5, 0.5), **alike)
        rows = coverage.simulated(planted, bank, 40)
        counts.append(sum(row["covered"] for row in rows if row["kind"] == "coverage"))
    assert counts[0] > 0.88 * 240 and counts[1] < 0.75 * 240
    found = [coverage.power(effect, 60, 30)["spoke"] for effect in (0.0, 0.2, 0.5)]
    assert found[0] <= 4 < found[1] < found[2] == 30
