"""Sampling: from pure noise to clean latents, Euler on a flow and DDIM (eta 0) on a VP path.

Both are one step, x_to = a·x_t + b·pred (`linear_step`): x_t is split into estimates of signal and
noise, which are combined at the next level. Other solvers are schedulers of diffusers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..config import RolloutConfig
from ..device import to_device
from ..interfaces import EditingModel, Model
from ..types import (
    Batch,
    Conditioning,
    DirectAlignError,
    Images,
    Latents,
    PathName,
    PerSample,
    PredictionName,
)
from .path import (
    alpha,
    determinant,
    expand_like,
    flow_sigmas,
    target_coefficients,
    to_x0,
    truncate_sigmas,
)
from .rng import NOISE, NoiseScope, batch_noise

SOLVERS: dict[str, Any] = {
    "dpm_solver": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
"""diffusers' schedulers: DPM-Solver++ 2M (arXiv 2211.01095) and UniPC (arXiv 2302.04867)."""
FLOW_SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
"""Their settings on a flow."""


@dataclass(frozen=True)
class RolloutStart:
    """Conditioning under the rollout's guidance, pure noise, the levels, falling to 0, and the
    solver, which has levels of its own unless it is euler."""

    cond: Conditioning
    noise: Latents
    sigmas: Float[Tensor, " levels"]
    solver: str = "euler"


def encode(model: Model, prompts: Sequence[str], sources: Images | None = None) -> Conditioning:
    """The conditioning of prompts and, where the model edits images, the source of each.

    Raises DirectAlignError for an editing model without sources, and for sources given to another.
    """
    edits = getattr(model, "edits_images", False)
    if edits and sources is None:
        raise DirectAlignError(
            f"{model.pipeline} edits images, and these prompts have none: train on data.edits, or "
            "sample with --source"
        )
    if sources is not None and not edits:
        raise DirectAlignError(
            f"{model.pipeline} takes no source images: use data.prompts, or a model.architecture "
            "that edits images (flux_kontext, qwen_image_edit)"
        )
    if sources is None:
        return model.encode_prompt(prompts)
    cond = cast(EditingModel, model).encode_prompt(prompts, sources)
    return replace(cond, sources=sources)


@torch.no_grad()
def start_rollout(
    model: Model,
    settings: RolloutConfig,
    batch: Batch,
    scope: NoiseScope = "per_rank",
    cond: Conditioning | None = None,
) -> RolloutStart:
    """Encode the prompts, unless given as `cond`, and draw the noise of a batch's rollout of
    `training_steps`."""
    height, width = batch.image_size or image_size(model, settings)
    sigmas = training_sigmas(model, settings, height, width)
    cond = cond or encode(model, batch.prompts, batch.source_images)
    cond = rollout_conditioning(cond, settings)
    shape = (len(batch.prompts), *model.latent_shape(height, width))
    noise = batch_noise(batch, NOISE, shape, scope)
    device = next(model.denoiser.parameters()).device
    return RolloutStart(cond, to_device(noise, device), sigmas, settings.solver)


def rollout_conditioning(cond: Conditioning, settings: RolloutConfig) -> Conditioning:
    """`cond` under the guidance and the truncation of the rollout."""
    guidance = settings.embedded_guidance, settings.cfg_scale
    return cond.guided(*guidance, settings.truncate_timestep)


def predict(model: Model, cond: Conditioning, x_t: Latents, sigma: PerSample) -> Latents:
    """The network's prediction at x_t; it gets int(n·sigma)/n if `cond.truncate_timestep` is n, as
    in the released trainer of arXiv 2509.06942. All algebra uses the exact sigma."""
    if cond.truncate_timestep is not None:
        sigma = truncate_sigmas(sigma, cond.truncate_timestep).to(sigma.device)
    return model.predict(x_t, sigma, cond)


def sample(
    model: Model,
    cond: Conditioning,
    noise: Latents,
    sigmas: Float[Tensor, " levels"],
    grad_steps: int = 0,
) -> Latents:
    """Clean latents x0 from `noise`, one network call per pair of neighbours in `sigmas`.

    `sigmas` fall to 0 (`model.sigmas`); if they end above 0 the result is x_t at the last level.
    The last `grad_steps` steps keep their graph, the others run without gradient. `noise` is taken
    as x_t at the first level, as in the diffusers pipelines.
    """
    x_t, first = noise, len(sigmas) - 1 - grad_steps
    keeps_graph = torch.is_grad_enabled()
    for index, (sigma_from, sigma_to) in enumerate(pairwise(to_device(sigmas, noise.device))):
        with torch.set_grad_enabled(keeps_graph and index >= first):
            x_t = sampling_step(model, cond, x_t, sigma_from, sigma_to)
    return x_t


@torch.no_grad()
def sample_rollout(model: Model, start: RolloutStart) -> Latents:
    """Clean latents x0 of a rollout by its solver, without gradient."""
    if start.solver == "euler":
        return sample(model, start.cond, start.noise, start.sigmas)
    steps, kind = len(start.sigmas) - 1, SOLVERS[start.solver]
    if model.path == "flow":
        scheduler = kind(**FLOW_SOLVER, flow_shift=flow_shift(start.sigmas))
    else:
        scheduler = kind.from_config(cast(Any, model).scheduler.config)
    scheduler.set_timesteps(steps)
    return sample_scheduled(model, start.cond, start.noise, scheduler)


@torch.no_grad()
def sample_scheduled(model: Model, cond: Conditioning, noise: Latents, scheduler: Any) -> Latents:
    """Clean latents x0 by a diffusers scheduler with its timesteps set, as its pipelines call it;
    a model on a DDPM table has it as `levels`."""
    timesteps, x_t = scheduler.timesteps, noise
    if model.path == "flow":
        levels = timesteps.double() / scheduler.config.num_train_timesteps
    else:
        levels = cast(Any, model).levels.sigma_of(timesteps)
    scheduler.set_begin_index(0)
    for level, timestep in zip(to_device(levels, noise.device), timesteps, strict=True):
        pred = predict(model, cond, x_t, level.expand(len(x_t)))
        x_t = scheduler.step(pred, timestep, x_t, return_dict=False)[0]
    return x_t


def flow_shift(sigmas: Float[Tensor, " levels"]) -> float:
    """The shift of which a grid of 3 or more steps is linspace(1, 0). Raises DirectAlignError."""
    steps = len(sigmas) - 1
    if steps < 3:
        raise DirectAlignError(
            f"rollout.solver extrapolates from earlier steps, and {steps} are too few: set 3 or "
            "more, or rollout.solver: euler"
        )
    second = float(sigmas[1])
    shift = second / ((steps - 1) * (1 - second))
    if not torch.allclose(sigmas.double(), flow_sigmas(steps, shift), atol=1e-4):
        raise DirectAlignError(
            "rollout.solver: the checkpoint's grid is no shifted linspace(1, 0), which the levels "
            "of this solver are: set rollout.shift, or rollout.solver: euler"
        )
    return shift


@torch.no_grad()
def sample_trajectory(model: Model, start: RolloutStart) -> list[Latents]:
    """Every state of a rollout without gradient, one per level: [0] is the noise, [-1] is x0."""
    states = [start.noise]
    for sigma_from, sigma_to in pairwise(to_device(start.sigmas, start.noise.device)):
        states.append(sampling_step(model, start.cond, states[-1], sigma_from, sigma_to))
    return states


def states_at(states: list[Latents], index: Int64[Tensor, " b"]) -> Latents:
    """Each sample's state at its own step `index`."""
    device = states[0].device
    return torch.stack(states)[to_device(index, device), torch.arange(len(index), device=device)]


def keep_gradient(values: Latents, rows: Bool[Tensor, " b"]) -> Latents:
    """`values`, detached in all but these rows."""
    return torch.where(to_device(rows, values.device)[:, None, None, None], values, values.detach())


def sampling_step(
    model: Model, cond: Conditioning, x_t: Latents, sigma_from: Tensor, sigma_to: Tensor
) -> Latents:
    """One network call between scalar levels: x_to = alpha_to·x0_hat + sigma_to·noise_hat."""
    sigma_from, sigma_to = sigma_from.expand(len(x_t)), sigma_to.expand(len(x_t))
    pred = predict(model, cond, x_t, sigma_from)
    return linear_step(model.path, model.prediction, x_t, pred, sigma_from, sigma_to)


def predict_x0(model: Model, cond: Conditioning, x_t: Latents, sigma: PerSample) -> Latents:
    """x0_hat: the network's one-step estimate of the clean latents at x_t; one network call."""
    pred = predict(model, cond, x_t, sigma)
    return to_x0(model.path, model.prediction, pred, x_t, sigma)


def rollout_sigmas(
    model: Model, settings: RolloutConfig, height: int, width: int
) -> Float[Tensor, " levels"]:
    """The grid of a recipe: linspace(1, 0) under its shift, or the checkpoint's scheduler's."""
    steps = settings.num_inference_steps
    if settings.shift is None:
        sigmas = model.sigmas(steps, height, width)
        if not sigmas.isfinite().all():  # a scheduler with shift_terminal has no single step
            raise DirectAlignError(
                f"rollout.num_inference_steps {steps} at {height}x{width}: the checkpoint's "
                "scheduler has no such grid: sample in more steps, or set rollout.shift"
            )
        return sigmas
    if model.path != "flow":
        raise DirectAlignError(
            f"rollout.shift {settings.shift} is for rectified-flow models, and this one follows a "
            "DDPM schedule: remove rollout.shift"
        )
    return flow_sigmas(steps, settings.shift)


def training_sigmas(
    model: Model, settings: RolloutConfig, height: int, width: int
) -> Float[Tensor, " levels"]:
    """The grid of the rollouts that are trained on, of `training_steps`."""
    steps = settings.training_steps or settings.num_inference_steps
    settings = settings.model_copy(update={"num_inference_steps": steps})
    return rollout_sigmas(model, settings, height, width)


def image_size(model: Model, rollout: RolloutConfig) -> tuple[int, int]:
    """(height, width) in pixels: the recipe's, else the checkpoint's default."""
    return rollout.height or model.default_size[0], rollout.width or model.default_size[1]


def step_coefficients(
    path: PathName, prediction: PredictionName, sigma_from: Tensor, sigma_to: Tensor
) -> tuple[Tensor, Tensor]:
    """(a, b) of x_to = alpha_to·x0_hat + sigma_to·noise_hat = a·x_t + b·pred between two levels of
    equal shape, at any distance.

        flow, velocity    a = 1                       b = sigma_to − sigma_from
        vp, epsilon       a = alpha_to/alpha_from     b = sigma_to − sigma_from·alpha_to/alpha_from
        vp, v             cosine and minus the sine of the angle between the levels

    A step to sigma 0 gives x0_hat. Epsilon has no step from alpha = 0.
    """
    of_noise, of_x0 = target_coefficients(path, prediction, sigma_from)
    alpha_from, alpha_to = alpha(path, sigma_from), alpha(path, sigma_to)
    scale = 1 / determinant(path, prediction, sigma_from)
    a = (alpha_to * of_noise - sigma_to * of_x0) * scale
    return a, (sigma_to * alpha_from - alpha_to * sigma_from) * scale


def linear_step(
    path: PathName,
    prediction: PredictionName,
    x_t: Latents,
    pred: Latents,
    sigma_from: PerSample,
    sigma_to: PerSample,
) -> Latents:
    """x_to from x_t and its prediction, (b, c, h, w) each; gradient through both."""
    a, b = step_coefficients(path, prediction, sigma_from, sigma_to)
    return expand_like(a, x_t) * x_t + expand_like(b, pred) * pred


def chain_coefficients(
    path: PathName, prediction: PredictionName, sigmas: Float[Tensor, " levels"]
) -> Float[Tensor, " steps"]:
    """d x_last / d pred of each step with held inputs: its b times the a of all later steps.

    On a flow these are the lengths of the steps, sigma_to − sigma_from.
    """
    a, b = step_coefficients(path, prediction, sigmas[:-1], sigmas[1:])
    from_here_on = a.flip(0).cumprod(0).flip(0)
    return b * torch.cat([from_here_on[1:], torch.ones_like(a[:1])])
