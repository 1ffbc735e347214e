"""One stochastic sampling step as a Gaussian, and the loss of a policy gradient over such steps.

Each is the deterministic step with part of the estimated noise replaced by fresh noise:

    x_to = alpha_to·x0_hat + kept·noise_hat + std·fresh   (kept = sigma_to, std = 0: Euler or DDIM)

They only differ in (kept, std), see `spread`. The rest follows DDPO (arXiv 2305.13301):
log-probability of a step, advantage of a sample over the others of its prompt, and the clipped
ratio of PPO (arXiv 1707.06347).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..device import to_like
from ..types import Latents, PathName, PerSample, PredictionName
from .path import alpha, expand_like, to_noise, to_x0

SDEKind = Literal["ddim", "flow_grpo", "dance"]

STD_EPSILON = 1e-6
"""Added to the std of rewards: equal rewards have advantage 0 instead of an undefined one."""


@dataclass(frozen=True)
class Transition:
    """x_to ~ Normal(mean, std²), one std per sample; 0: no noise, the step cannot be trained."""

    mean: Latents
    std: PerSample

    def sample(self, fresh: Latents) -> Latents:
        """x_to from standard normal numbers `fresh`."""
        return self.mean + expand_like(self.std, self.mean) * to_like(fresh, self.mean)


def transition(
    kind: SDEKind,
    path: PathName,
    prediction: PredictionName,
    pred: Latents,
    x_t: Latents,
    sigma_from: PerSample,
    sigma_to: PerSample,
    noise_level: float,
) -> Transition:
    """The step down to `sigma_to` given the network's `pred` at x_t; gradient through `pred`."""
    x0_hat = to_x0(path, prediction, pred, x_t, sigma_from)
    noise_hat = to_noise(path, prediction, pred, x_t, sigma_from)
    kept, std = spread(kind, path, sigma_from, sigma_to, noise_level)
    signal = expand_like(alpha(path, sigma_to), x_t) * x0_hat
    return Transition(signal + expand_like(kept, x_t) * noise_hat, std)


def spread(
    kind: SDEKind, path: PathName, sigma_from: PerSample, sigma_to: PerSample, noise_level: float
) -> tuple[PerSample, PerSample]:
    """(kept, std): estimated noise that stays and fresh noise; (sigma_to, 0) at noise_level 0.

    ddim       std = noise_level·sigma_to·√(1 − (sigma_to·alpha_from / (sigma_from·alpha_to))²) and
                   kept = √(sigma_to² − std²). Any path; on a VP path noise_level is eta of DDIM
                   (arXiv 2010.02502, eq. 16), 0 to 1. The noise in x_to always sums to sigma_to, as
                   in coefficient-preserving sampling (arXiv 2509.05952).
    flow_grpo  dx = (v + s²/(2t)·(x + (1 − t)·v))dt + s·dw with s = noise_level·√(t/(1 − t)),
                   t = sigma (arXiv 2505.05470). x + (1 − t)·v is noise_hat, hence kept = sigma_to −
                   s²·Δ/(2·sigma_from) and std = s·√Δ with Δ = sigma_from − sigma_to. At pure noise
                   1 − t is taken at sigma_to, as in the authors' implementation.
    dance      the same with s = noise_level throughout (arXiv 2505.07818).

    The last step, to sigma_to = 0, adds no noise in any kind, as in DDIM and DanceGRPO. Flow-GRPO's
    implementation leaves noise in the image that the reward scores, and trains all steps but that
    one.
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
    kept = sigma_to - squared * step / (2 * sigma_from)
    return kept * stochastic, (squared * step).sqrt() * stochastic


def log_prob(step: Transition, x_to: Latents) -> PerSample:
    """Log-density of x_to, as the mean over its dimensions, as in Flow-GRPO and DanceGRPO.

    A ratio of two such values is the true one to the power 1 / dimensions: clip ranges are small.
    """
    std = expand_like(step.std, step.mean)
    each = -((x_to - step.mean) ** 2) / (2 * std**2) - std.log() - math.log(2 * math.pi) / 2
    return each.mean((1, 2, 3))


def kl_divergence(step: Transition, base: Transition) -> PerSample:
    """KL(step ‖ base) of equal stds: mean over dimensions of (difference of means)² / (2·std²).

    Flow-GRPO's released code divides by 2·std²/Δ, Δ the length of the step.
    """
    squared = ((step.mean - base.mean) ** 2).mean((1, 2, 3))
    return squared / (2 * step.std.to(step.mean) ** 2)


def group_advantage(
    reward: PerSample, group_size: int, over: Literal["group", "batch"] = "group"
) -> PerSample:
    """(reward − mean of its group) / std; runs of `group_size` neighbours are samples of one
    prompt.

    `over` chooses the population std: each group's own (GRPO, arXiv 2402.03300), or that of all
    rewards of this batch (`global_std` of Flow-GRPO's released code), so that prompts whose samples
    hardly differ weigh less.
    """
    deviation = center_groups(reward, group_size)
    if over == "group":
        std = deviation.square().mean(dim=-1, keepdim=True).sqrt()
    else:
        std = reward.std(correction=0)
    return (deviation / (std + STD_EPSILON)).flatten()


def center_groups(reward: PerSample, group_size: int) -> Float[Tensor, "groups members"]:
    """Each reward minus the mean of its group."""
    groups = reward.view(-1, group_size)
    return groups - groups.mean(dim=1, keepdim=True)


def clipped_loss(ratio: PerSample, advantage: PerSample, clip_range: float) -> PerSample:
    """max(−advantage·ratio, −advantage·clip(ratio, 1 ± clip_range)) of arXiv 1707.06347."""
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.max(-advantage * ratio, -advantage * clipped)
