"""Every parametrisation says the same thing about x_t."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from directalign.diffusion.path import (
    alpha,
    classifier_free_guidance,
    expand_like,
    target,
    to_noise,
    to_x0,
)
from directalign.diffusion.recovery import inject

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
