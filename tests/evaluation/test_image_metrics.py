"""The algebra of the pixel metrics: what moves them, by how much, and what must not; diversity."""

import pytest
import torch

from directalign.evaluation import image_metrics
from directalign.evaluation.eval_prompts import fixed_pairs
from directalign.evaluation.image_metrics import (
    SEEDS_PER_PROMPT,
    color_cast,
    color_drift,
    cosine_distance,
    diversity,
    diversity_pairs,
    rmse,
    to_siblings,
)
from directalign.types import DirectAlignError

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(6, 3, 16, 16, generator=GENERATOR, dtype=torch.float64) * 0.5 + 0.2


def tinted(*tint: float) -> torch.Tensor:
    return IMAGES + torch.tensor(tint, dtype=torch.float64)[None, :, None, None]


def flat(*levels: float, size: int = 8) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, size, size).clone()


def halves(size: int) -> torch.Tensor:
    return torch.cat([torch.zeros(1, 3, size, size // 2), torch.ones(1, 3, size, size // 2)], dim=3)


def test_a_uniform_tint_moves_the_cast_by_exactly_that():
    moved = color_cast(tinted(0.09, 0, 0)) - color_cast(IMAGES)
    expected = torch.tensor([0.06, -0.03, -0.03], dtype=torch.float64)
    torch.testing.assert_close(moved, expected.expand(6, 3))
    assert color_drift(tinted(0.09, 0, 0), IMAGES) == pytest.approx(0.09 * (2 / 3) ** 0.5)


def test_brightness_contrast_and_saturation_are_no_drift():
    grey = IMAGES[:, :1].expand(-1, 3, -1, -1)
    balanced = torch.cat([IMAGES, IMAGES[:, [1, 2, 0]], IMAGES[:, [2, 0, 1]]])
    faded = balanced.mean(1, keepdim=True) + 0.4 * (balanced - balanced.mean(1, keepdim=True))
    for images, reference in ((tinted(*[0.1] * 3), IMAGES), (0.3 * grey, grey), (faded, balanced)):
        assert color_drift(images, reference) == pytest.approx(0, abs=1e-12)
    brighter = image_metrics.brightness(tinted(*[0.1] * 3)) - image_metrics.brightness(IMAGES)
    assert brighter.numpy() == pytest.approx(0.1)
    saturation = image_metrics.saturation(balanced)
    assert image_metrics.saturation(faded).numpy() == pytest.approx(0.4 * saturation.numpy())
    assert image_metrics.luminance(flat(0.7)).numpy() == pytest.approx(0.7)  # weights sum to 1


def test_sharpness_and_fine_detail():
    assert image_metrics.sharpness(flat(0.4)).max() == 0
    assert image_metrics.high_frequency(flat(0.4)).max() < 1e-12
    ramp = torch.linspace(0, 1, 11).expand(1, 3, 11, 11)
    assert image_metrics.sharpness(ramp).item() == pytest.approx(0.01, rel=1e-5)
    checker = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(6, 6).expand(1, 3, 12, 12)
    smooth = image_metrics.high_frequency(ramp)
    assert image_metrics.high_frequency(checker) > 50 * smooth


def test_entropy_and_dark_share():
    levels = torch.arange(256).reshape(1, 1, 16, 16).expand(1, 3, 16, 16) / 255
    quarter = (torch.arange(256).reshape(16, 16) < 64).float().expand(1, 3, 16, 16)
    found = image_metrics.entropy(torch.cat([flat(0.3, size=16), levels, halves(16), quarter]))
    assert found.numpy() == pytest.approx([0.0, 8.0, 1.0, 0.25 * 2 + 0.75 * 0.415037], abs=1e-5)
    assert image_metrics.dark_share(halves(4)).item() == 0.5


def test_edges_are_where_luminance_jumps():
    checker = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float().expand(1, 3, 8, 8)
    gentle = torch.linspace(0, 0.6993, 8).expand(1, 3, 8, 8)
    found = image_metrics.edge_density(torch.cat([flat(0.3), checker, halves(8), gentle]))
    assert found.numpy() == pytest.approx([0, 1, 1 / 7, 0], abs=1e-6)
    assert image_metrics.edge_density(0.09 * checker).item() == 0, "below the threshold of 0.1"


def test_diversity_in_closed_form():
    pairwise = [0.1, 0.3, 0.7, 0.2, 0.6, 0.4], [0, 0, 0.5, 0, 0.5, 0.5]
    expected = (sum(pairwise[0]) / 6 + sum(pairwise[1]) / 6) / 2
    levels = [0.1, 0.2, 0.4, 0.8], [0.5, 0.5, 0.5, 1.0]
    assert diversity(flat(*levels[0], *levels[1])) == pytest.approx(expected, abs=1e-7)
    assert diversity(flat(*[0.3] * 8)) == 0
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert diversity(noise) == pytest.approx((1 / 6) ** 0.5, rel=0.01)  # E (a − b)² = 1/6
    parts = [diversity(noise[:4]), diversity(noise[4:])]  # prompts do not mix
    assert diversity(noise) == pytest.approx(sum(parts) / 2) == diversity(noise.flip(0))


def test_diversity_pairs_share_their_seeds_and_no_seed_of_other_pairs():
    prompts = ["a", "b", "c", "d", "e"]
    pairs = diversity_pairs(prompts, 3)
    seeds = pairs.seeds[:SEEDS_PER_PROMPT]
    assert len(set(pairs.prompts)) == 3 and len(set(seeds)) == SEEDS_PER_PROMPT
    assert pairs.seeds == seeds * 3 and not set(seeds) & set(fixed_pairs(prompts, 5000).seeds)
    assert diversity_pairs(prompts, 5).first(len(pairs)) == pairs
    assert len(diversity_pairs(prompts, 0)) == 0
    with pytest.raises(DirectAlignError, match=r"diversity_prompts is 3, .* 2 prompts: ask for 2"):
        diversity_pairs(["a", "b"], 3)


def test_distances_to_siblings_average_to_the_diversity():
    images = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    prompts = ["a", "b", "a", "b", "only", "a", "b", "a", "b"]
    found, first, second = to_siblings(images, prompts, rmse), [0, 2, 5, 7], [1, 3, 6, 8]
    assert found[4].isnan()
    for places in (first, first + second):
        expected = diversity(images[places])
        assert found[places].mean().item() == pytest.approx(expected, rel=1e-9)


def test_distances_in_closed_form():
    assert rmse(flat(0.0, 0.0), flat(0.5, 0.5)).tolist() == [0.5, 0.5]
    there = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    found = cosine_distance(torch.tensor([[1.0, 0.0]] * 3), there)
    assert found.tolist() == pytest.approx([0, 1, 2], abs=1e-9)
