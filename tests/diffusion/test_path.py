"""Paths, grids and the DDPM table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from directalign.diffusion.path import (
    DDPMTable,
    alpha,
    flow_sigmas,
    shift_sigmas,
    truncate_sigmas,
)
from directalign.types import DirectAlignError

LEVELS = torch.linspace(0, 1, 101, dtype=torch.float64)
STABLE_DIFFUSION = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)


def test_coefficients_of_both_paths():
    assert_close(alpha("flow", LEVELS) + LEVELS, torch.ones_like(LEVELS))
    assert_close(alpha("vp", LEVELS) ** 2 + LEVELS**2, torch.ones_like(LEVELS))
    sigma = torch.tensor([1 - 1e-12], dtype=torch.float64)
    assert_close(alpha("vp", sigma), (2 * (1 - sigma)).sqrt(), rtol=1e-9, atol=0)


@given(st.floats(0, 1), st.floats(0.1, 10))
def test_shift_is_undone_by_its_inverse(sigma: float, shift: float):
    there = shift_sigmas(torch.tensor(sigma, dtype=torch.float64), shift)
    assert 0 <= there <= 1
    assert_close(shift_sigmas(there, 1 / shift).item(), sigma, rtol=0, atol=1e-12)


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
def test_table_inverts_itself_from_sigma(sigma: float):
    table = DDPMTable(STABLE_DIFFUSION)
    level = torch.tensor([sigma], dtype=torch.float64)
    assert_close(table.sigma_of(table.timestep_of(level)), level, rtol=0, atol=1e-12)
