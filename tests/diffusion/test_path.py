"""Paths, predictions, grids, the DDPM table, and the draws of noise."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from directalign.diffusion.path import (
    DDPMTable,
    alpha,
    classifier_free_guidance,
    expand_like,
    flow_sigmas,
    target,
    to_noise,
    to_x0,
    truncate_sigmas,
)
from directalign.diffusion.recovery import inject
from directalign.diffusion.rng import draw_noise, generator_for
from directalign.types import DirectAlignError

LEVELS = torch.linspace(0, 1, 101, dtype=torch.float64)
STABLE_DIFFUSION = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)


def test_coefficients_of_both_paths():
    assert_close(alpha("flow", LEVELS) + LEVELS, torch.ones_like(LEVELS))
    assert_close(alpha("vp", LEVELS) ** 2 + LEVELS**2, torch.ones_like(LEVELS))
    sigma = torch.tensor([1 - 1e-12], dtype=torch.float64)
    assert_close(alpha("vp", sigma), (2 * (1 - sigma)).sqrt(), rtol=1e-9, atol=0)


def test_flow_grid_falls_from_one_to_zero():
    grid = flow_sigmas(25, shift=3.0)
    assert len(grid) == 26 and grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    assert_close(grid[5].item(), 3 * 0.8 / (1 + 2 * 0.8))


def test_truncation_keeps_whole_timesteps_and_drops_the_rest():
    sigma = torch.tensor([0.75, 0.878500, 0.9, 1.0, 0.0], dtype=torch.float64)
    wanted = torch.tensor([0.75, 0.878, 0.9, 1.0, 0.0], dtype=torch.float64)
    assert_close(truncate_sigmas(sigma, 1000), wanted)


def test_the_table_is_that_of_the_scheduler():
    table = DDPMTable(STABLE_DIFFUSION)
    sigma = table.sigma_of(torch.arange(1000))
    assert_close(sigma, (1 - STABLE_DIFFUSION.double()).sqrt(), rtol=0, atol=0)
    ends = torch.tensor([0.0, 999.0], dtype=torch.float64)
    assert_close(table.timestep_of(torch.tensor([0.0, 1.0])), ends)
    assert_close(table.sigma_of(torch.tensor([-3.0, 2000.0])), table.sigmas[[0, -1]])
    with pytest.raises(DirectAlignError, match="alphas_cumprod"):
        DDPMTable(torch.tensor([0.9, 0.9, 0.5]))


@given(st.floats(0.0292, 0.9976))
def test_table_inverts_itself_from_sigma(sigma):
    table = DDPMTable(STABLE_DIFFUSION)
    level = torch.tensor([sigma], dtype=torch.float64)
    assert_close(table.sigma_of(table.timestep_of(level)), level, rtol=0, atol=1e-12)


PATHS = ("flow", "vp")
PREDICTIONS = ("velocity", "epsilon", "v")
SIGMA = torch.tensor([0.05, 0.6, 0.97], dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_knows_x0_and_noise(path, prediction, latents):
    x0, noise, _ = latents
    x_t = inject(path, x0, noise, SIGMA).x_t
    pred = target(path, prediction, x0, noise, SIGMA)
    assert_close(to_x0(path, prediction, pred, x_t, SIGMA), x0)
    assert_close(to_noise(path, prediction, pred, x_t, SIGMA), noise)
    pred = latents[2]  # any prediction splits x_t
    signal = expand_like(alpha(path, SIGMA), x_t) * to_x0(path, prediction, pred, x_t, SIGMA)
    rest = expand_like(SIGMA, x_t) * to_noise(path, prediction, pred, x_t, SIGMA)
    assert_close(signal + rest, x_t)


def test_targets_written_out(latents):
    x0, noise, _ = latents
    a, s = expand_like(alpha("vp", SIGMA), x0), expand_like(SIGMA, x0)
    assert_close(target("flow", "velocity", x0, noise, SIGMA), noise - x0)
    assert_close(target("vp", "epsilon", x0, noise, SIGMA), noise)
    assert_close(target("vp", "v", x0, noise, SIGMA), a * noise - s * x0)


def test_classifier_free_guidance_runs_through_both_answers(latents):
    cond, uncond, _ = latents
    assert_close(classifier_free_guidance(cond, uncond, 1.0), cond)
    assert_close(classifier_free_guidance(cond, uncond, 0.0), uncond)
    assert_close(classifier_free_guidance(cond, uncond, 3.0), 3 * cond - 2 * uncond)


def test_equal_keys_give_equal_noise():
    """Whatever the global random state; different keys never do."""
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        drawn.append(draw_noise((2, 4, 3, 3), generator_for(5, 1, 2, 0)))
    assert drawn[0].dtype == torch.float32 and torch.equal(*drawn)
    keys = [*itertools.product(range(3), range(3), range(20), range(4))]
    keys += [(0,), (0, 0), (0, 0, 0), (1, 0), (0, 1), (2**70,), (-1,)]
    heads = {tuple(draw_noise((4,), generator_for(*key)).tolist()) for key in keys}
    assert len(heads) == len(keys)


def test_a_stream_is_no_shifted_copy_of_its_neighbour():
    one, two = (draw_noise((512,), generator_for(0, 0, step)) for step in (0, 1))
    assert not set(one.tolist()) & set(two.tolist())
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.2


def test_inject_mixes_by_sample_and_keeps_what_it_mixed(latents):
    x0, noise, _ = latents
    noised = inject("flow", x0, noise, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    assert_close(noised.x_t[0], x0[0])
    assert_close(noised.x_t[1], 0.75 * x0[1] + 0.25 * noise[1])
    assert_close(noised.x_t[2], noise[2])
    assert noised.x0 is x0
    assert noised.noise is noise
