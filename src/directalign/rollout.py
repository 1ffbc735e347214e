"""From pure noise to clean latents with a handful of network calls: Euler on a flow, DDIM (eta 0) on a VP path.

Both are one line: split x_t into what the network takes for signal and for noise, and put them together at the next level.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from .config import Rollout
from .core.path import alpha, flow_sigmas, per_sample
from .core.prediction import to_noise, to_x0
from .interfaces import Family
from .types import Conditioning, DirectAlignError, Latents


def sample(family: Family, cond: Conditioning, noise: Latents, sigmas: Float[Tensor, " levels"], grad_steps: int = 0) -> Latents:
    """Clean latents x0 from `noise`, one network call per pair of neighbours in `sigmas` (falling, ends in 0; `family.sigmas` gives them).

    The last `grad_steps` steps keep their graph, the others run without gradient. `noise` is taken as x_t at the first
    level as it is, as the diffusers pipelines do.
    """
    x_t, num_sampling_steps = noise, len(sigmas) - 1
    keeps_graph = torch.is_grad_enabled()
    for index, (sigma_from, sigma_to) in enumerate(pairwise(sigmas.to(noise.device))):
        with torch.set_grad_enabled(keeps_graph and index >= num_sampling_steps - grad_steps):
            x_t = _step(family, cond, x_t, sigma_from.expand(len(noise)), sigma_to.expand(len(noise)))
    return x_t


def rollout_sigmas(family: Family, rollout: Rollout, height: int, width: int) -> Float[Tensor, " levels"]:
    """The sampling grid of a recipe: its own shift of linspace(1, 0), or the checkpoint's scheduler."""
    if rollout.shift is None:
        return family.sigmas(rollout.num_sampling_steps, height, width)
    if family.path != "flow":
        raise DirectAlignError(f"rollout.shift {rollout.shift} is for rectified-flow models, and this one follows a DDPM schedule: remove rollout.shift")
    return flow_sigmas(rollout.num_sampling_steps, rollout.shift)


def _step(family: Family, cond: Conditioning, x_t: Latents, sigma_from: Tensor, sigma_to: Tensor) -> Latents:
    pred = family.predict(x_t, sigma_from, cond)
    x0_hat = to_x0(family.path, family.prediction, pred, x_t, sigma_from)
    noise_hat = to_noise(family.path, family.prediction, pred, x_t, sigma_from)
    return per_sample(alpha(family.path, sigma_to), x_t) * x0_hat + per_sample(sigma_to, x_t) * noise_hat
