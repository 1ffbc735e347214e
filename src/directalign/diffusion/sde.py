"""One stochastic sampling step as a Gaussian, and what a policy gradient makes of it.

Every kind of step is the deterministic one with part of the believed noise exchanged for fresh noise:

    x_to = alpha_to·x0_hat + kept·noise_hat + std·fresh          (kept = sigma_to and std = 0: Euler, or DDIM at eta 0)

They differ in (kept, std) alone, see `spread`. The rest is DDPO's bookkeeping (arXiv 2305.13301): how probable a step was, how
much better its image was than the others of its prompt, and the clipped ratio of PPO (arXiv 1707.06347).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Latents, PathName, PerSample, PredictionName
from .path import alpha, per_sample, to_noise, to_x0

Kind = Literal["ddim", "flow_grpo", "dance"]

EQUAL_SCORES = 1e-6
"""Added to a spread of rewards, so that a group of equal ones has no advantage instead of none that is defined."""


@dataclass(frozen=True)
class Transition:
    """x_to ~ Normal(mean, std²), one std per sample; 0 where the step adds no noise and so cannot be trained."""

    mean: Latents
    std: PerSample

    def draw(self, fresh: Latents) -> Latents:
        """x_to made with standard normal numbers `fresh`."""
        return self.mean + per_sample(self.std, self.mean) * fresh.to(self.mean)


def transition(
    kind: Kind,
    path: PathName,
    prediction: PredictionName,
    pred: Latents,
    x_t: Latents,
    sigma_from: PerSample,
    sigma_to: PerSample,
    noise_level: float,
) -> Transition:
    """The step from `sigma_from` down to `sigma_to` that the network's `pred` at x_t proposes; gradient through `pred`."""
    x0_hat = to_x0(path, prediction, pred, x_t, sigma_from)
    noise_hat = to_noise(path, prediction, pred, x_t, sigma_from)
    kept, std = spread(kind, path, sigma_from, sigma_to, noise_level)
    return Transition(per_sample(alpha(path, sigma_to), x_t) * x0_hat + per_sample(kept, x_t) * noise_hat, std)


def spread(kind: Kind, path: PathName, sigma_from: PerSample, sigma_to: PerSample, noise_level: float) -> tuple[PerSample, PerSample]:
    """(kept, std): how much of the believed noise stays and how much fresh noise comes in; (sigma_to, 0) at noise_level 0.

        ddim       std = noise_level·sigma_to·√(1 − (sigma_to·alpha_from / (sigma_from·alpha_to))²), kept = √(sigma_to² − std²).
                   Any path; on a VP path this is eta of DDIM (arXiv 2010.02502, eq. 16), 0 to 1. The noise in x_to is always
                   sigma_to in all, as in coefficient-preserving sampling (arXiv 2509.05952).
        flow_grpo  dx = (v + s²/(2t)·(x + (1 − t)·v))dt + s·dw with s = noise_level·√(t/(1 − t)), t = sigma (arXiv 2505.05470).
                   x + (1 − t)·v is noise_hat, hence kept = sigma_to − s²·Δ/(2·sigma_from) and std = s·√Δ with Δ = sigma_from − sigma_to.
                   At pure noise 1 − t is taken at sigma_to instead, as the authors' implementation does.
        dance      the same with s = noise_level throughout (arXiv 2505.07818).

    The last step, to sigma_to = 0, adds no noise in any kind. That is DDIM's and DanceGRPO's way; Flow-GRPO's implementation
    leaves noise in the image that the reward sees, and trains all steps but that one.
    """
    if kind == "ddim":
        shrinkage = sigma_to * alpha(path, sigma_from) / (sigma_from * alpha(path, sigma_to))
        fresh = noise_level * (1 - shrinkage**2).sqrt()
        return sigma_to * (1 - fresh**2).sqrt(), sigma_to * fresh
    assert path == "flow", f"the {kind} step is one of rectified flow"
    step = sigma_from - sigma_to
    squared = torch.full_like(sigma_from, noise_level**2)
    if kind == "flow_grpo":
        squared = squared * sigma_from / (1 - torch.where(sigma_from == 1, sigma_to, sigma_from))
    stochastic = sigma_to > 0
    return (sigma_to - squared * step / (2 * sigma_from)) * stochastic, (squared * step).sqrt() * stochastic


def log_prob(moved: Transition, x_to: Latents) -> PerSample:
    """Log-density of x_to, as the mean over its dimensions (the sum in theory; Flow-GRPO and DanceGRPO take the mean).

    The ratio of two such numbers is the true one to the power 1 / dimensions: clip ranges are small because of it.
    """
    std = per_sample(moved.std, moved.mean)
    each = -((x_to - moved.mean) ** 2) / (2 * std**2) - std.log() - math.log(2 * math.pi) / 2
    return each.mean((1, 2, 3))


def divergence(moved: Transition, base: Transition) -> PerSample:
    """KL(moved ‖ base) = (difference of the means)² / (2·std²), as the mean over dimensions like `log_prob`; one std for both."""
    return ((moved.mean - base.mean) ** 2).mean((1, 2, 3)) / (2 * moved.std.to(moved.mean) ** 2)


def group_advantage(reward: PerSample, group_size: int, over: Literal["group", "batch"] = "group") -> PerSample:
    """(reward − mean of its group) / std: neighbours in runs of `group_size` are samples of one prompt and compared with each other alone.

    `over` says whose std it is: each group's own (GRPO, arXiv 2402.03300), or of the deviations of all groups of this
    batch, so that prompts whose samples hardly differ weigh less. Both are population stds.
    """
    deviation = centred(reward, group_size)
    std = deviation.square().mean(dim=-1, keepdim=True).sqrt() if over == "group" else deviation.square().mean().sqrt()
    return (deviation / (std + EQUAL_SCORES)).flatten()


def centred(reward: PerSample, group_size: int) -> Float[Tensor, "groups members"]:
    """Each reward minus the mean of its group."""
    groups = reward.view(-1, group_size)
    return groups - groups.mean(dim=1, keepdim=True)


def clipped_loss(ratio: PerSample, advantage: PerSample, clip_range: float) -> PerSample:
    """max(−advantage·ratio, −advantage·clip(ratio, 1 ± clip_range)) of arXiv 1707.06347: no gain from going further than that."""
    return torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range))
