"""Where a reward pushes: planted angles are found, intervals cover them, and responsiveness,
content and bias are what was planted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from directalign.config import ControlPhrases
from directalign.reward_analysis.images import Examples, load_examples
from directalign.reward_analysis.responsiveness import (
    angle_by_scene,
    angle_of_means,
    content,
    feature_directions,
    measure,
    pixel_directions,
    responsiveness,
    tangent,
)

WORDS = ControlPhrases(positive=["Warm"], negative=["Cold"])


class Planted:
    """Features are the mean colour; "Warm" adds its product with `axis` to the score, and every
    caption a taste for green."""

    name, reads_prompt, differentiable = "planted", True, True

    def __init__(self, axis: Sequence[float]) -> None:
        self.axis = torch.tensor(axis)

    def encode(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        warm = torch.tensor([float(prompt.startswith("Warm")) for prompt in prompts])
        return warm * (features @ self.axis) + features[:, 1]


def plates(shift: Sequence[float], count: int = 12) -> Examples:
    """Plain plates of random colours, and the same ones shifted by a colour."""
    unwanted = (
        (0.3 + 0.2 * torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(0)))
        .expand(count, 3, 16, 16)
        .clone()
    )
    prompts = tuple(f"plate {i}" for i in range(count))
    return Examples(
        unwanted + torch.tensor(shift)[:, None, None], unwanted, prompts, prompts, paired=True
    )


@pytest.mark.parametrize("degrees", [0, 30, 90, 140])
def test_a_planted_angle_is_found_among_features_and_pixels(degrees: int) -> None:
    reward = Planted((math.cos(math.radians(degrees)), 0.0, math.sin(math.radians(degrees))))
    examples = plates((0.1, 0.0, 0.0))
    features = feature_directions(reward, examples, WORDS)
    assert features is not None
    for found in (
        angle_of_means(*features),
        angle_by_scene(*features),
        angle_by_scene(*pixel_directions(reward, examples, WORDS)),
    ):
        assert found["value"] == pytest.approx(degrees, abs=0.1) and found["n"] == 12


def test_of_unit_features_the_part_along_the_sphere_is_taken() -> None:
    features = F.normalize(torch.randn(5, 4, dtype=torch.float64), dim=1)
    along = tangent(torch.randn(5, 4, dtype=torch.float64), features)
    assert torch.allclose(
        (along * features).sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-12
    )
    long = 3 * features
    assert torch.equal(tangent(features, long), features)


def test_the_interval_of_an_angle_covers_the_true_one() -> None:
    """Noise of the directions opens the angle of their means; the reflected bootstrap takes that
    off. Nominal: 95 %."""
    generator, true = torch.Generator().manual_seed(1), 30.0
    axis = torch.tensor(
        [math.cos(math.radians(true)), math.sin(math.radians(true)), *[0.0] * 6],
        dtype=torch.float64,
    )
    first = F.one_hot(torch.tensor(0), 8).double()
    covered = 0
    for _ in range(20):
        noise = 0.6 * torch.randn(2, 60, 8, generator=generator, dtype=torch.float64)
        found = angle_of_means(first + noise[0], axis + noise[1])
        covered += found["low"] <= true <= found["high"]
    assert covered >= 17


def test_responsiveness_counts_in_spreads_and_auc_in_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, unwanted = (
        1 + torch.randn(1500, generator=generator),
        torch.randn(1500, generator=generator),
    )
    found = responsiveness(wanted, unwanted)
    assert found["responsiveness"] == pytest.approx(1, abs=0.1) and found["auc"] == pytest.approx(
        0.76, abs=0.03
    )
    assert responsiveness(torch.zeros(3), torch.zeros(3)) == {
        "separation": 0.0,
        "responsiveness": 0.0,
        "auc": 0.5,
    }


def test_content_is_the_share_of_other_captions_that_lose() -> None:
    class Reads(Planted):
        def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
            return torch.tensor([float(prompt.endswith("plate 0")) for prompt in prompts])

    examples = plates((0.0, 0.0, 0.0), 3)
    assert content(
        Reads((0.0, 0.0, 0.0)), examples.wanted, examples.wanted_prompts
    ) == pytest.approx(2 / 6)
    assert content(
        Reads((0.0, 0.0, 0.0)), examples.wanted, examples.wanted_prompts, WORDS
    ) == pytest.approx(2 / 6)


def test_everything_at_once_on_a_planted_reward() -> None:
    found = measure(Planted((1.0, 0.0, 0.0)), plates((0.1, 0.0, 0.0)), WORDS)
    assert found["separation"] == pytest.approx(0.1, abs=1e-6)
    red, green = found["bias"]["red tint"], found["bias"]["green tint"]
    assert red["relative"] == pytest.approx(0.1, abs=1e-6) and red["absolute"] == pytest.approx(
        -0.05, abs=1e-6
    )
    assert green["relative"] == pytest.approx(-0.05, abs=1e-6) and green[
        "absolute"
    ] == pytest.approx(0.1, abs=1e-6)
    assert found["angle"]["value"] == pytest.approx(0, abs=0.1)


def test_without_pairs_there_are_no_angles() -> None:
    drawn = load_examples("world:photo/cg", "--images", count=8)
    apart = Examples(
        drawn.wanted, drawn.unwanted, drawn.wanted_prompts, drawn.unwanted_prompts, paired=False
    )
    assert "angle" in measure(Planted((1.0, 0.0, 0.0)), drawn, WORDS) and "angle" not in measure(
        Planted((1.0, 0.0, 0.0)), apart, WORDS
    )
