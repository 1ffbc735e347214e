"""Sampling grids of checkpoints' schedulers: DDIM on a DDPM table, Euler on a rectified flow."""

from pathlib import Path as FilePath
from typing import Any, cast

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from jaxtyping import Float64
from torch import Tensor

from ..diffusion.path import DDPMTable
from ..types import DirectAlignError, PredictionName

PREDICTIONS: dict[str, PredictionName] = {"epsilon": "epsilon", "v_prediction": "v"}
"""`prediction_type` of a scheduler -> what its network predicts."""


def ddim(folder: FilePath, scheduler: Any) -> DDIMScheduler:
    """DDIM on a scheduler's own table. Raises DirectAlignError if it cannot be repeated exactly.

    Sampling always ends at clean (`set_alpha_to_one: true`); with false, diffusers stops at the
    table's first level, about sigma .03.
    """
    if "beta_schedule" not in scheduler.config:
        raise DirectAlignError(
            f"{folder}: a {type(scheduler).__name__} has no DDPM table: only models trained on one "
            "are read, set model.architecture to match"
        )
    for name in ("clip_sample", "thresholding"):
        if scheduler.config.get(name, False):
            raise DirectAlignError(
                f"{folder}: {name} is on, which is for pixels, not latents: "
                "set it to false in scheduler_config.json"
            )
    made = cast(DDIMScheduler, DDIMScheduler.from_config(scheduler.config))
    prediction = made.config["prediction_type"]
    if prediction not in PREDICTIONS:
        raise DirectAlignError(
            f"{folder}: prediction_type {prediction} is not read: epsilon and v_prediction are"
        )
    if prediction == "epsilon" and made.alphas_cumprod[-1] == 0:
        raise DirectAlignError(
            f"{folder}: a network that predicts the noise cannot start at pure noise: "
            "set rescale_betas_zero_snr to false"
        )
    return made


def ddim_grid(
    scheduler: DDIMScheduler, levels: DDPMTable, num_inference_steps: int
) -> Float64[Tensor, " levels"]:
    """Levels of the scheduler's timesteps under its own spacing and offset, then 0; (n + 1,)."""
    length = len(scheduler.alphas_cumprod)
    scheduler.set_timesteps(min(num_inference_steps, length))
    if num_inference_steps > length or scheduler.timesteps.max() >= length:
        raise DirectAlignError(
            f"rollout.num_inference_steps: {num_inference_steps} does not fit the {length} levels "
            "of this model's schedule: ask for fewer"
        )
    visited = levels.sigma_of(scheduler.timesteps)
    return torch.cat([visited, visited.new_zeros(1)])


def shift_by_size(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> float:
    """Exponent of the shift for an image of `tokens` tokens: linear between two sizes."""
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(tokens, *(scheduler.config[name] for name in names))


def euler_grid(
    scheduler: FlowMatchEulerDiscreteScheduler, num_inference_steps: int, exponent: float
) -> Float64[Tensor, " levels"]:
    """The scheduler's levels, falling, ending in 0; one with a fixed shift does not use `exponent`.

    A single step gives NaN where sampling ends above 0 (shift_terminal).
    """
    with np.errstate(invalid="ignore"):
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, mu=exponent)
    return cast(Tensor, scheduler.sigmas).double()


def check_euler(folder: FilePath, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
    """Raise DirectAlignError unless the scheduler of `folder` is plain Euler."""
    for name in ("stochastic_sampling", "invert_sigmas"):
        if scheduler.config.get(name):
            raise DirectAlignError(
                f"{folder / 'scheduler'}: {name} is on, sampling here is plain Euler: set it to "
                "false"
            )
