from __future__ import annotations

import torch

from directalign.diffusion import sde
from directalign.methods import objective_math


def test_it_is_the_mean_square_of_each_sample(latents):
    _, base, pred = latents
    by_hand = [
        sum(float(a - b) ** 2 for a, b in zip(x.flatten(), y.flatten(), strict=True)) / x.numel()
        for x, y in zip(pred, base, strict=True)
    ]
    torch.testing.assert_close(
        objective_math.velocity_kl(pred, base), torch.tensor(by_hand, dtype=torch.float64)
    )
    assert objective_math.velocity_kl(base, base).tolist() == [0.0] * len(base)


def test_it_does_not_depend_on_the_size_of_the_latents(latents):
    _, base, pred = latents
    twice = (each.repeat(1, 1, 2, 2) for each in (pred, base))
    torch.testing.assert_close(
        objective_math.velocity_kl(*twice), objective_math.velocity_kl(pred, base)
    )


def test_the_divergence_of_a_policy_gradient_is_this_distance_of_means_in_units_of_its_noise(
    latents,
):
    _, base, pred = latents
    std = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    found = sde.kl_divergence(sde.Transition(pred, std), sde.Transition(base, std))
    torch.testing.assert_close(found, objective_math.velocity_kl(pred, base) / (2 * std**2))
