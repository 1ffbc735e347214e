"""From pure noise to clean latents with a handful of network calls: Euler on a flow, DDIM (eta 0) on a VP path.

Both are one line: split x_t into what the network takes for signal and for noise, and put them together at the next level.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import Rollout
from ..interfaces import Family
from ..types import Batch, Conditioning, DirectAlignError, Latents, PathName, PerSample, PredictionName
from .path import alpha, coefficients, determinant, flow_sigmas, per_sample, to_noise, to_x0
from .rng import NOISE, draw_noise, for_update, generator_for, generator_of


def step_coefficients(path: PathName, prediction: PredictionName, sigma_from: Tensor, sigma_to: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of the step between two levels of any equal shape, at any distance.

        flow, velocity    a = 1                       b = sigma_to − sigma_from
        vp, epsilon       a = alpha_to / alpha_from   b = sigma_to − sigma_from·alpha_to / alpha_from
        vp, v             the cosine and minus the sine of the angle between the levels

    A step to sigma 0 is the one-step guess x0_hat. Epsilon has no step from alpha = 0, x0 none from sigma = 0.
    """
    of_noise, of_x0 = coefficients(path, prediction, sigma_from)
    alpha_from, alpha_to = alpha(path, sigma_from), alpha(path, sigma_to)
    scale = 1 / determinant(path, prediction, sigma_from)
    return (alpha_to * of_noise - sigma_to * of_x0) * scale, (sigma_to * alpha_from - alpha_to * sigma_from) * scale


def linear_step(path: PathName, prediction: PredictionName, x_t: Latents, pred: Latents, sigma_from: PerSample, sigma_to: PerSample) -> Latents:
    """x_to from x_t and what the network said of it, (b, c, h, w) each; gradient through both as far as they carry one."""
    a, b = step_coefficients(path, prediction, sigma_from, sigma_to)
    return per_sample(a, x_t) * x_t + per_sample(b, pred) * pred


def chain_coefficients(path: PathName, prediction: PredictionName, sigmas: Float[Tensor, " levels"]) -> Float[Tensor, " steps"]:
    """d x_last / d pred of each step along `sigmas`, the network's inputs held: its b times the a of all later steps.

    On a flow these are the steps' own lengths, sigma_to − sigma_from.
    """
    a, b = step_coefficients(path, prediction, sigmas[:-1], sigmas[1:])
    from_here_on = a.flip(0).cumprod(0).flip(0)
    return b * torch.cat([from_here_on[1:], torch.ones_like(a[:1])])


@dataclass(frozen=True)
class Start:
    """Where a rollout begins: the prompts under the rollout's guidance, pure noise, and the levels to visit (they end in 0)."""

    cond: Conditioning
    noise: Latents
    sigmas: Float[Tensor, " levels"]


@torch.no_grad()
def start(family: Family, settings: Rollout, batch: Batch, shared_noise: bool = False) -> Start:
    """The beginning of a batch's rollout; `shared_noise` gives all samples and ranks the same noise, as the official trainer does."""
    height, width = batch.size or (settings.height or family.default_size[0], settings.width or family.default_size[1])
    cond = family.encode_prompt(batch.prompts).guided(settings.embedded_guidance, settings.cfg_scale)
    noise = noise_of(batch, NOISE, (len(batch.prompts), *family.latent_shape(height, width)), shared_noise)
    return Start(cond, noise.to(next(family.denoiser.parameters()).device), rollout_sigmas(family, settings, height, width))


def noise_of(batch: Batch, stream: int, shape: tuple[int, ...], shared: bool = False, index: int = 0) -> Latents:
    """Noise of `shape` (b, c, h, w) from a stream of the update, on the CPU; `shared` is one draw for all samples and ranks."""
    if shared:
        one = draw_noise((1, *shape[1:]), generator_for(batch.seed, stream, batch.step, 0, index))
        return one.expand(*shape)
    generator = generator_of(batch, stream, index)
    return for_update(batch, lambda total: draw_noise((total, *shape[1:]), generator))


def sample(family: Family, cond: Conditioning, noise: Latents, sigmas: Float[Tensor, " levels"], grad_steps: int = 0) -> Latents:
    """Clean latents x0 from `noise`, one network call per pair of neighbours in `sigmas` (falling to 0; `family.sigmas` gives them).

    Levels that end above 0 give x_t at the last of them. The last `grad_steps` steps keep their graph, the others run
    without gradient. `noise` is taken as x_t at the first level as it is, as the diffusers pipelines do.
    """
    x_t, num_sampling_steps = noise, len(sigmas) - 1
    keeps_graph = torch.is_grad_enabled()
    for index, (sigma_from, sigma_to) in enumerate(pairwise(sigmas.to(noise.device))):
        with torch.set_grad_enabled(keeps_graph and index >= num_sampling_steps - grad_steps):
            x_t = step(family, cond, x_t, sigma_from.expand(len(noise)), sigma_to.expand(len(noise)))
    return x_t


@torch.no_grad()
def trajectory(family: Family, begun: Start) -> list[Latents]:
    """Every state of a rollout without gradient, one per level: [0] is the noise, [-1] is x0."""
    states = [begun.noise]
    for sigma_from, sigma_to in pairwise(begun.sigmas.to(begun.noise.device)):
        states.append(step(family, begun.cond, states[-1], sigma_from.expand(len(begun.noise)), sigma_to.expand(len(begun.noise))))
    return states


def step(family: Family, cond: Conditioning, x_t: Latents, sigma_from: PerSample, sigma_to: PerSample) -> Latents:
    """One sampling step, one network call: x_to = alpha_to·x0_hat + sigma_to·noise_hat."""
    pred = family.predict(x_t, sigma_from, cond)
    x0_hat = to_x0(family.path, family.prediction, pred, x_t, sigma_from)
    noise_hat = to_noise(family.path, family.prediction, pred, x_t, sigma_from)
    return per_sample(alpha(family.path, sigma_to), x_t) * x0_hat + per_sample(sigma_to, x_t) * noise_hat


def one_step_guess(family: Family, cond: Conditioning, x_t: Latents, sigma: PerSample) -> Latents:
    """x0_hat: what the network takes for the clean latents at x_t, one network call."""
    return to_x0(family.path, family.prediction, family.predict(x_t, sigma, cond), x_t, sigma)


def rollout_sigmas(family: Family, rollout: Rollout, height: int, width: int) -> Float[Tensor, " levels"]:
    """The sampling grid of a recipe: its own shift of linspace(1, 0), or the checkpoint's scheduler, which must give numbers."""
    if rollout.shift is None:
        sigmas = family.sigmas(rollout.num_sampling_steps, height, width)
        if not sigmas.isfinite().all():  # a scheduler that ends above 0 (shift_terminal) has no single step
            asked = f"rollout.num_sampling_steps {rollout.num_sampling_steps} at {height}x{width}"
            raise DirectAlignError(f"{asked}: the checkpoint's scheduler has no such grid: sample in more steps, or set rollout.shift")
        return sigmas
    if family.path != "flow":
        raise DirectAlignError(f"rollout.shift {rollout.shift} is for rectified-flow models, and this one follows a DDPM schedule: remove rollout.shift")
    return flow_sigmas(rollout.num_sampling_steps, rollout.shift)
