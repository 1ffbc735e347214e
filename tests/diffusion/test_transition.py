"""Steps between two levels: with noise as published, and without it in linear form."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from directalign.diffusion import sde
from directalign.diffusion.path import alpha, expand_like, to_noise, to_x0
from directalign.diffusion.sampling import chain_coefficients, linear_step, sampling_step
from directalign.methods.objective_math import velocity_kl
from directalign.types import Conditioning
from methods.toy import ToyFamily

FLOW_KINDS = ("ddim", "flow_grpo", "dance")
EVERY = [
    *((kind, "flow", "velocity") for kind in FLOW_KINDS),
    ("ddim", "vp", "epsilon"),
    ("ddim", "vp", "v"),
]
HIGH, LOW = (
    torch.tensor([0.95, 0.7, 0.3], dtype=torch.float64),
    torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64),
)


def expanded(sigma: Tensor) -> Tensor:
    return sigma[:, None, None, None]


@pytest.mark.parametrize(("kind", "path", "prediction"), EVERY)
def test_without_noise_it_is_the_deterministic_step(latents, kind, path, prediction):
    x_t, _, pred = latents
    moved = sde.transition(kind, path, prediction, pred, x_t, HIGH, LOW, 0.0)
    x0_hat, noise_hat = (
        to_x0(path, prediction, pred, x_t, HIGH),
        to_noise(path, prediction, pred, x_t, HIGH),
    )
    assert moved.mean.equal(
        expand_like(alpha(path, LOW), x_t) * x0_hat + expand_like(LOW, x_t) * noise_hat
    )
    assert moved.std.equal(torch.zeros(3, dtype=torch.float64))


def test_ddim_is_the_published_eta_on_a_vp_path(latents):
    """arXiv 2010.02502, equations 12 and 16, with their alphas, which are squares of ours."""
    x_t, _, pred = latents
    eta, a_from, a_to = 0.6, 1 - HIGH**2, 1 - LOW**2
    std = eta * ((1 - a_to) / (1 - a_from)).sqrt() * (1 - a_from / a_to).sqrt()
    x0_hat = (x_t - expanded(HIGH) * pred) / expanded(a_from).sqrt()
    mean = expanded(a_to).sqrt() * x0_hat + expanded(1 - a_to - std**2).sqrt() * pred
    moved = sde.transition("ddim", "vp", "epsilon", pred, x_t, HIGH, LOW, eta)
    torch.testing.assert_close(moved.std, std)
    torch.testing.assert_close(moved.mean, mean)


@pytest.mark.parametrize(("kind", "a"), [("flow_grpo", 0.7), ("dance", 0.3)])
def test_sde_steps_are_the_published_ones(latents, kind, a):
    """x + (v + s²/(2t)·(x + (1 − t)·v))·dt + s·√−dt·noise, written out with t and dt."""
    x_t, fresh, velocity = latents
    t, dt = expanded(HIGH), expanded(LOW - HIGH)
    s = a * (t / (1 - t)).sqrt() if kind == "flow_grpo" else torch.full_like(t, a)
    expected = (
        x_t
        + (velocity + s**2 / (2 * t) * (x_t + (1 - t) * velocity)) * dt
        + s * (-dt).sqrt() * fresh
    )
    moved = sde.transition(kind, "flow", "velocity", velocity, x_t, HIGH, LOW, a)
    torch.testing.assert_close(moved.sample(fresh), expected)


def test_at_pure_noise_flow_grpo_takes_the_next_level_where_it_would_divide_by_zero():
    one, low = torch.ones(1, dtype=torch.float64), torch.tensor([0.9], dtype=torch.float64)
    _, std = sde.spread("flow_grpo", "flow", one, low, 0.7)
    assert float(std) == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.9)) * math.sqrt(0.1))


@pytest.mark.parametrize(("kind", "path", "prediction"), EVERY)
def test_the_last_step_ends_at_x0_hat_without_noise(latents, kind, path, prediction):
    x_t, fresh, pred = latents
    moved = sde.transition(kind, path, prediction, pred, x_t, HIGH, torch.zeros_like(HIGH), 0.7)
    torch.testing.assert_close(moved.sample(fresh), to_x0(path, prediction, pred, x_t, HIGH))


def test_advantages_compare_samples_of_one_prompt():
    reward = torch.tensor([1.0, 2.0, 3.0, 101.0, 102.0, 109.0], dtype=torch.float64)
    own = sde.group_advantage(reward, 3)
    assert own[:3].equal(
        sde.group_advantage(reward[:3], 3)
    )  # another group's rewards change nothing
    torch.testing.assert_close(own.view(2, 3).mean(1), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(
        own.view(2, 3).std(1, correction=0), torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=0
    )
    over_all = sde.group_advantage(reward, 3, over="batch")
    torch.testing.assert_close(over_all.view(2, 3).mean(1), torch.zeros(2, dtype=torch.float64))
    assert over_all[:3].abs().max() < over_all[3:].abs().max()
    deviations = reward - reward.view(2, 3).mean(1).repeat_interleave(3)
    expected = deviations / (reward.std(correction=0) + 1e-6)  # Flow-GRPO's global_std
    torch.testing.assert_close(over_all, expected)
    equal = torch.full((8,), 0.25, dtype=torch.float64)
    assert sde.group_advantage(equal, 4).equal(torch.zeros_like(equal))
    assert sde.group_advantage(torch.full((8,), 0.3), 4).abs().max() < 0.1  # rounding in float32


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.1, 0.0),
        (0.8, 2.0, -1.6, -2.0),
        (1.1, -2.0, 2.2, 2.0),
        (0.8, -2.0, 1.9, 0.0),
    ],
)
def test_the_ratio_pays_no_further_than_the_clip(ratio, advantage, loss, slope):
    at = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    value = sde.clipped_loss(at, torch.tensor([advantage], dtype=torch.float64), 0.05)
    (found,) = torch.autograd.grad(value.sum(), at)
    assert value.item() == pytest.approx(loss) and found.item() == pytest.approx(slope)


def test_log_probability_and_divergence_are_means_of_the_normals(latents):
    mean, base, x_to = latents
    std = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    ours, theirs = sde.Transition(mean, std), sde.Transition(base, std)
    normals = [Normal(each, expanded(std)) for each in (mean, base)]
    expected = normals[0].log_prob(x_to).mean((1, 2, 3))
    torch.testing.assert_close(sde.log_prob(ours, x_to), expected)
    found = sde.kl_divergence(ours, theirs)
    torch.testing.assert_close(found, kl_divergence(*normals).mean((1, 2, 3)))
    torch.testing.assert_close(found, velocity_kl(mean, base) / (2 * std**2))
    twice = (each.repeat(1, 1, 2, 2) for each in (mean, base))
    torch.testing.assert_close(velocity_kl(*twice), velocity_kl(mean, base))
    assert velocity_kl(base, base).tolist() == [0.0] * 3


# --- without noise --------------------------------------------------------------------------------

NATIVE = [("flow", "velocity"), ("vp", "epsilon"), ("vp", "v"), ("flow", "epsilon")]
SIGMAS = torch.tensor([0.99, 0.7, 0.4, 0.15, 0.0], dtype=torch.float64)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize(("start", "end"), [(HIGH, LOW), (LOW, HIGH)], ids=["denoise", "inversion"])
@pytest.mark.parametrize("native", NATIVE)
def test_the_linear_form_is_the_samplers_step(native, start, end, latents):
    family, x_t = ToyFamily(*native), latents[0]
    pred = family.predict(x_t, start, Conditioning(("", "", ""), {}))
    assert_close(
        linear_step(*native, x_t, pred, start, end),
        sampling_step(family, Conditioning(("", "", ""), {}), x_t, start, end),
        **EXACT,
    )


@pytest.mark.parametrize("native", NATIVE)
def test_chain_coefficients_are_the_gradients_of_the_predictions(native):
    x_t = torch.randn(1, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    preds = [torch.randn_like(x_t).requires_grad_() for _ in SIGMAS[1:]]
    for pred, (sigma_from, sigma_to) in zip(preds, pairwise(SIGMAS), strict=True):
        x_t = linear_step(*native, x_t, pred, sigma_from.expand(1), sigma_to.expand(1))
    found = torch.stack(
        [gradient[0, 0, 0, 0] for gradient in torch.autograd.grad(x_t.sum(), preds)]
    )
    assert_close(chain_coefficients(*native, SIGMAS), found, **EXACT)
