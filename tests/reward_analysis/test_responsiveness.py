"""Planted rewards: angles are found, intervals cover them, and all measures have known values."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from directalign.config import ControlPhrases
from directalign.reward_analysis import responsiveness as measures
from directalign.reward_analysis.images import Examples
from directalign.reward_analysis.responsiveness import (
    angle_by_scene,
    angle_of_means,
    feature_directions,
    measure,
    pixel_directions,
)

PHRASES = ControlPhrases(positive=["Warm"], negative=["Cold"])


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(measures, "RESAMPLES", 200)


def axis(degrees: float, width: int = 3) -> Tensor:
    """In the plane of the first and the last axis."""
    found = torch.zeros(width, dtype=torch.float64)
    found[0], found[-1] = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return found


class Planted:
    """Features: mean color. "Warm" adds their product with `axis` to the score, green always 1."""

    name, sees, reads_prompt, differentiable = "planted", "pixels", True, True

    def __init__(self, axis: Tensor) -> None:
        self.axis = axis.float()

    def encode(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        warm = torch.tensor([float(prompt.startswith("Warm")) for prompt in prompts])
        return warm * (features @ self.axis) + features[:, 1]


def plates(shift: Sequence[float], count: int = 12, paired: bool = True) -> Examples:
    """Uniform images of random colors, and the same ones shifted by a color."""
    colors = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    unwanted = (0.3 + 0.2 * colors).expand(count, 3, 16, 16).clone()
    prompts = tuple(f"plate {i}" for i in range(count))
    wanted = unwanted + torch.tensor(shift)[:, None, None]
    return Examples(wanted, unwanted, prompts, prompts, paired=paired)


@pytest.mark.parametrize("degrees", [0, 30, 140])
def test_a_planted_angle_is_found_in_features_and_pixels(degrees):
    reward, examples = Planted(axis(degrees)), plates((0.1, 0.0, 0.0))
    features = feature_directions(reward, examples, PHRASES)
    assert features is not None
    pixels = angle_by_scene(*pixel_directions(reward, examples, PHRASES))
    for found in (angle_of_means(*features), angle_by_scene(*features), pixels):
        assert found["value"] == pytest.approx(degrees, abs=0.1) and found["n"] == 12


def test_the_interval_of_an_angle_covers_the_true_one():
    """Noise widens the angle of means; the reflected bootstrap corrects it. Nominal: 95 %."""
    generator, covered = torch.Generator().manual_seed(1), 0
    for _ in range(20):
        noise = 0.6 * torch.randn(2, 60, 8, generator=generator, dtype=torch.float64)
        found = angle_of_means(axis(0, 8) + noise[0], axis(30, 8) + noise[1])
        covered += found["low"] <= 30 <= found["high"]
    assert covered >= 17


def test_all_measures_of_a_planted_reward():
    found = measure(Planted(axis(0)), plates((0.1, 0.0, 0.0)), PHRASES)
    assert found["separation"] == pytest.approx(0.1, abs=1e-6)
    red, green = found["bias"]["red tint"], found["bias"]["green tint"]
    assert red == pytest.approx({"absolute": -0.05, "relative": 0.1}, abs=1e-6)
    assert green == pytest.approx({"absolute": 0.1, "relative": -0.05}, abs=1e-6)
    assert found["angle"]["value"] == pytest.approx(0, abs=0.1)
    assert "angle" not in measure(Planted(axis(0)), plates((0.1, 0, 0), paired=False), PHRASES)
