"""The algebra of the drift statistics: what moves them, by how much, and what must not."""

from __future__ import annotations

import pytest
import torch

from directalign.evaluation import image_metrics

IMAGES = (
    torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    + 0.2
)


def tinted(red: float, green: float = 0.0, blue: float = 0.0) -> torch.Tensor:
    return IMAGES + torch.tensor([red, green, blue], dtype=torch.float64)[None, :, None, None]


def test_uniform_tint_moves_the_cast_by_exactly_that():
    moved = image_metrics.color_cast(tinted(0.09)) - image_metrics.color_cast(IMAGES)
    assert moved == pytest.approx(
        torch.tensor([0.06, -0.03, -0.03], dtype=torch.float64).expand(6, 3)
    )
    assert image_metrics.color_drift(tinted(0.09), IMAGES) == pytest.approx(0.09 * (2 / 3) ** 0.5)


def test_brightness_is_no_drift():
    assert image_metrics.color_drift(tinted(0.1, 0.1, 0.1), IMAGES) == pytest.approx(0, abs=1e-12)
    assert (
        image_metrics.brightness(tinted(0.1, 0.1, 0.1)) - image_metrics.brightness(IMAGES)
    ).numpy() == pytest.approx(0.1)


def test_scaling_grey_images_is_no_drift():
    grey = IMAGES[:, :1].expand(-1, 3, -1, -1)
    assert image_metrics.color_drift(0.3 * grey, grey) == pytest.approx(0, abs=1e-12)


def test_symmetric_loss_of_saturation_is_no_drift():
    balanced = torch.cat([IMAGES, IMAGES[:, [1, 2, 0]], IMAGES[:, [2, 0, 1]]])
    faded = balanced.mean(1, keepdim=True) + 0.4 * (balanced - balanced.mean(1, keepdim=True))
    assert image_metrics.color_drift(faded, balanced) == pytest.approx(0, abs=1e-12)
    assert image_metrics.saturation(faded).numpy() == pytest.approx(
        (0.4 * image_metrics.saturation(balanced)).numpy()
    )


def test_luminance_weights_sum_to_one():
    assert image_metrics.luminance(torch.full((1, 3, 2, 2), 0.7)).numpy() == pytest.approx(0.7)


def test_flat_images_have_no_detail():
    flat = torch.full((2, 3, 8, 8), 0.4)
    assert image_metrics.sharpness(flat).abs().max() == 0
    assert image_metrics.high_frequency(flat).max() < 1e-12


def test_a_ramp_has_gradient_but_no_fine_detail_inside():
    ramp = torch.linspace(0, 1, 11).expand(1, 3, 11, 11)
    assert image_metrics.sharpness(ramp).item() == pytest.approx(0.01, rel=1e-5)
    checker = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(6, 6).expand(1, 3, 12, 12)
    assert (
        image_metrics.high_frequency(checker).item()
        > 50 * image_metrics.high_frequency(ramp).item()
    )


def test_dark_share_counts_pixels():
    half = torch.zeros(1, 3, 4, 4)
    half[..., :2] = 0.5
    assert image_metrics.dark_share(half).item() == 0.5


def test_entropy_counts_levels_in_bits():
    flat, levels = (
        torch.full((1, 3, 16, 16), 0.3),
        torch.arange(256).reshape(1, 1, 16, 16).expand(1, 3, 16, 16) / 255,
    )
    halves = torch.cat([torch.zeros(1, 3, 16, 8), torch.ones(1, 3, 16, 8)], dim=3)
    quarter = torch.where(torch.arange(16)[:, None] * 16 + torch.arange(16) < 64, 1.0, 0.0).expand(
        1, 3, 16, 16
    )
    found = image_metrics.entropy(torch.cat([flat, levels, halves, quarter]))
    assert found.numpy() == pytest.approx([0.0, 8.0, 1.0, 0.25 * 2 + 0.75 * 0.415037], abs=1e-5)


def test_edges_are_where_luminance_jumps():
    flat, checker = (
        torch.full((1, 3, 8, 8), 0.3),
        (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float().expand(1, 3, 8, 8),
    )
    halves = torch.cat([torch.zeros(1, 3, 8, 4), torch.ones(1, 3, 8, 4)], dim=3)
    gentle = torch.linspace(0, 0.7, 8).expand(1, 3, 8, 8)
    assert image_metrics.edge_density(
        torch.cat([flat, checker, halves, gentle - 0.001 * gentle])
    ).numpy() == pytest.approx([0, 1, 1 / 7, 0], abs=1e-6)
    assert image_metrics.edge_density(0.09 * checker).item() == 0, "below the threshold of 0.1"


def test_casts_are_parts_of_one_vector():
    red, grey = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.4)
    red[:, 0] = 1
    found = image_metrics.casts(torch.cat([red, grey]))
    assert found["red_cast"].numpy() == pytest.approx([2 / 3, 0], abs=1e-6) and found[
        "color_cast"
    ].numpy() == pytest.approx([(2 / 3) ** 0.5, 0], abs=1e-6)
    assert (found["red_cast"] + found["green_cast"] + found["blue_cast"]).abs().max() < 1e-6


def test_statistics_are_per_image():
    assert {
        name: tuple(value.shape) for name, value in image_metrics.statistics(IMAGES).items()
    } == dict.fromkeys(image_metrics.STATISTICS, (6,))
