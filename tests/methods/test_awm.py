"""AWM's update by hand, in float64: ratios of weighted matching losses, clipped, by the advantage.

What it shares with DiffusionNFT (old policy, ranks, failures) is tested there.
"""

from typing import Any

import pytest
import torch

from directalign.types import Batch
from methods import by_hand
from methods.by_hand import CASES, GUIDANCE, PHRASES, PROMPTS, make, read
from methods.test_diffusion_nft import CLIP, KL, SIZE, injected, moved, old_samples
from methods.test_raft import target_by_hand
from methods.toy import ToyDenoiser, ToyFamily, ToyReward

RANGE, OLD_KL = 0.004, 0.3
SETTINGS: dict[str, Any] = {
    "control_phrases": PHRASES,
    "form": "relative",
    "group_size": SIZE,
    "injections": 2,
    "advantage_clip": CLIP,
    "clip_range": RANGE,
    "old_kl_beta": OLD_KL,
    "old_decay": 0.7,
    "old_decay_rise": 0.3,
    "kl_beta": KL,
}


def log_prob(error: torch.Tensor, sigma: torch.Tensor, weighting: str) -> torch.Tensor:
    square = (error**2).mean((1, 2, 3))
    if weighting == "ghuber":
        return -sigma * 4 * ((square + 1e-10) ** 0.25 - 1e-10**0.25)
    return -square * (sigma if weighting == "sigma" else 1)


@pytest.mark.parametrize("weighting", ["ghuber", "sigma", "uniform"])
@pytest.mark.parametrize("path", CASES)
def test_it_weighs_the_matching_loss_by_the_advantage(path, weighting):
    family, old = ToyFamily(*path), ToyDenoiser()
    made = make("awm", family, ToyReward(differentiable=False), weighting=weighting, **SETTINGS)
    list(made.losses(Batch(0, PROMPTS, seed=7)))
    moved(family, old)
    terms = list(read(made.losses(Batch(1, PROMPTS, seed=7))))

    x0, advantage = old_samples(family, old, "relative")
    losses, clipped = [], []
    for noise, sigma, x_t in injected(path, x0):
        v, v_old, base = (
            each(x_t, sigma, GUIDANCE) for each in (family.denoiser, old, ToyDenoiser())
        )
        target = target_by_hand(path, x0, noise, sigma)
        ratio = log_prob(v - target, sigma, weighting) - log_prob(v_old - target, sigma, weighting)
        ratio, weight = ratio.exp(), advantage / CLIP
        inside = ratio.clamp(1 - RANGE, 1 + RANGE)
        clipped += (inside != ratio).tolist()
        loss = torch.maximum(-weight * ratio, -weight * inside)
        loss = loss + OLD_KL * ((v - v_old) ** 2).mean((1, 2, 3))
        losses.append(loss + KL * ((v - base) ** 2).mean((1, 2, 3)))
    assert 0 < sum(clipped) < len(clipped)
    wanted, value = torch.cat(losses).mean(), sum((term.value for term in terms), torch.zeros(()))
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)  # noise in float32
    ours, theirs = (by_hand.gradient(family, each) for each in (value, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    means = [term.metrics["clip_fraction"] for term in terms]
    assert sum(means) / len(means) == pytest.approx(sum(clipped) / len(clipped))


def test_on_policy_it_is_the_matching_loss_times_the_advantage():
    """Every ratio is 1, and its gradient that of the log-probability."""
    family = ToyFamily()
    settings = {**SETTINGS, "old_decay": 0.0, "kl_beta": 0.0, "weighting": "uniform"}
    made = make("awm", family, **settings)
    terms = list(read(made.losses(Batch(1, PROMPTS, seed=7))))
    assert not made.own_weights() and all(term.metrics["ratio"] == 1 for term in terms)
    x0, advantage = old_samples(family, family.denoiser, "relative")
    losses = [
        ((family.denoiser(x_t, sigma, GUIDANCE) - (noise - x0)) ** 2).mean((1, 2, 3)) * advantage
        for noise, sigma, x_t in injected(("flow", "velocity"), x0)
    ]
    ours = sum(by_hand.gradient(family, term.value) for term in terms)
    theirs = by_hand.gradient(family, torch.cat(losses).mean() / CLIP)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert theirs.abs().max() > 1e-3
