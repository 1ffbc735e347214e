"""The official grid point by point with its two clipped ends, and the continuous samplers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from directalign.diffusion.noise_levels import (
    ConstantGainSampler,
    GridSampler,
    RolloutSampler,
    UniformSampler,
)
from directalign.diffusion.recovery import gain
from directalign.diffusion.rng import generator_for
from directalign.types import DirectAlignError

OFFICIAL = GridSampler()
NATIVE = [("flow", "velocity"), ("vp", "epsilon"), ("vp", "v")]
FLOAT32 = {"rtol": 0, "atol": 1e-7}


def change(move) -> float:
    """Change of sigma, of the one sample or of all if they agree in sign, else 0."""
    signs = (move.sigma_to - move.sigma_from).sign().unique()
    return float(signs) if len(signs) == 1 else 0.0


def landing(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigma(point: int) -> float:
    """The official window from its definition: indices 25 and 5 of the shift-3 grid of 50 steps,
    1000 linear points."""
    low, high = 3 * 0.5 / 2, 3 * 0.9 / 2.8
    return low + (high - low) * (point - 1) / 999


@pytest.mark.parametrize(
    ("m", "denoise", "inversion"),
    [
        (500, (600, 500), (400, 500)),
        (100, (200, 100), (1, 101)),
        (101, (201, 101), (1, 101)),
        (40, (80, 40), (1, 41)),
        (5, (10, 5), (1, 6)),
        (950, (1000, 950), (900, 950)),
        (995, (1000, 995), (990, 995)),
    ],
)
def test_official_moves_point_by_point(m, denoise, inversion):
    for move, (start, end) in (
        (OFFICIAL.denoise(torch.tensor([m])), denoise),
        (OFFICIAL.inversion(torch.tensor([m])), inversion),
    ):
        assert_close(
            (move.sigma_from.item(), move.sigma_to.item()), (sigma(start), sigma(end)), **FLOAT32
        )
        assert_close(move.position.item(), min(start, end) / 999)
        assert_close(move.discount_position.item(), min(start, end) / 1000)


def test_span_draws_and_equal_ends_of_both_branches():
    middle, m = torch.tensor([500]), OFFICIAL.draw(200, generator_for(0))
    for ratio in (0.9, 0.6):
        grid = GridSampler(groundtruth_ratio=ratio)
        assert grid.span(middle).item() == int((1 - ratio) * 1000) + 1
    assert GridSampler(groundtruth_ratio=0.0).span(middle).item() == 500
    inside = m > 100
    assert torch.equal(OFFICIAL.denoise(m).sigma_to[inside], OFFICIAL.inversion(m).sigma_to[inside])
    small = GridSampler(points=12)
    draws = [small.draw(200, generator_for(1, 2)) for _ in range(2)]
    assert set(draws[0].tolist()) == {5, 6, 7} and torch.equal(*draws)
    narrow = GridSampler(points=7, edge=2)
    assert set(narrow.draw(200, generator_for(1)).tolist()) == {2, 3, 4, 5}


@given(st.integers(11, 300), st.floats(0, 0.99), st.data())
def test_no_move_leaves_the_window(points, ratio, data):
    grid = GridSampler(points=points, groundtruth_ratio=ratio)
    m = torch.tensor([data.draw(st.integers(5, points - 5))])
    for move in (grid.denoise(m), grid.inversion(m)):
        assert min(move.sigma_from.item(), move.sigma_to.item()) >= 0.7499999
        assert max(move.sigma_from.item(), move.sigma_to.item()) <= 0.9642858
        assert 0 <= move.position.item() <= 1
    assert change(grid.denoise(m)) < 0
    assert change(grid.inversion(m)) > 0


def test_uniform_window_jumps_by_its_jump():
    window = UniformSampler(0.96, 0.5, 0.02)
    levels = window.draw(100, generator_for(3))
    assert ((levels >= 0.5) & (levels < 0.96)).all()
    denoise, inversion = window.denoise(levels), window.inversion(levels)
    assert_close(denoise.sigma_from - denoise.sigma_to, torch.full_like(levels, 0.02))
    assert_close(inversion.sigma_to - inversion.sigma_from, torch.full_like(levels, 0.02))
    assert torch.equal(denoise.sigma_to, inversion.sigma_to)
    assert_close(denoise.position, (levels - 0.5) / 0.46)
    assert_close(inversion.position, ((levels - 0.02 - 0.5) / 0.46).clamp(min=0))


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("size", [0.02, 0.15])
def test_constant_gain_is_constant(native, size):
    window = ConstantGainSampler(0.96, 0.5, size, *native)
    levels = window.draw(100, generator_for(4))
    denoise, inversion = window.denoise(levels), window.inversion(levels)
    assert torch.equal(denoise.sigma_to, levels)
    assert torch.equal(inversion.sigma_to, levels)
    found = gain(*native, denoise.sigma_from, denoise.sigma_to)
    assert_close(found, torch.full_like(levels, size), rtol=1e-9, atol=0)
    found = gain(*native, inversion.sigma_from, inversion.sigma_to)
    assert_close(found, torch.full_like(levels, -size), rtol=1e-9, atol=0)


@pytest.mark.parametrize("native", NATIVE)
def test_a_gain_out_of_reach_is_as_large_as_it_may_be(native):
    window, low = ConstantGainSampler(0.9, 0.0, 0.8, *native), landing(0.05)
    inversion = window.inversion(low)
    assert change(inversion) > 0
    assert_close(inversion.sigma_from, 0.1 * low)
    assert gain(*native, inversion.sigma_from, inversion.sigma_to).abs().item() < 0.8


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GridSampler(first=25, last=5), "window 25..5"),
        (lambda: GridSampler(schedule_steps=20), "0..20"),
        (lambda: GridSampler(points=9), "points is 9: at least 10"),
        (lambda: UniformSampler(0.5, 0.5, 0.02), "sigma_low 0.5"),
        (lambda: ConstantGainSampler(1.2, 0.5, 0.1, "flow", "velocity"), "sigma_high 1.2"),
    ],
)
def test_impossible_windows_are_refused_in_one_line(build, message):
    with pytest.raises(DirectAlignError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("first", "last"), [(0, None), (1, 2)])
def test_a_rollouts_own_steps_are_drawn_from_one_level_to_the_next(first, last):
    levels = landing(1, 0.9, 0.75, 0.5, 0)
    sampler = RolloutSampler(levels, first, last)
    drawn = sampler.draw(200, generator_for(1))
    ends = set(range(first, (3 if last is None else last) + 1))
    assert set(drawn.tolist()) == ends
    step = sampler.denoise(drawn)
    assert torch.equal(step.sigma_from, levels[drawn])
    assert torch.equal(step.sigma_to, levels[drawn + 1])
    assert step.position.min() == 0 and step.position.max() < 1


@pytest.mark.parametrize(("first", "last"), [(4, None), (2, 1), (0, 4)])
def test_steps_that_a_rollout_lacks_are_refused(first, last):
    with pytest.raises(DirectAlignError, match=r"not among the rollout's 0\.\.3"):
        RolloutSampler(landing(1, 0.9, 0.75, 0.5, 0), first, last)
