"""What the UNets on a DDPM path share: DDIM on the checkpoint's own table, and the channels and sizes the UNet takes.

The last step always ends at clean (`set_alpha_to_one: true`); a folder that says false stops at the table's first level in
diffusers, some sigma .03, and is sampled to the end here.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any, cast

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from jaxtyping import Float64
from torch import Tensor

from ..diffusion.path import DDPMTable
from ..types import DirectAlignError, PredictionName
from . import vae as autoencoder

PREDICTIONS: dict[str, PredictionName] = {"epsilon": "epsilon", "v_prediction": "v"}
"""prediction_type of a scheduler -> what its network says."""


def ddim(folder: FilePath, scheduler: Any) -> DDIMScheduler:
    """DDIM on a scheduler's own table; what this package could not repeat exactly is an error that names `folder`."""
    if "beta_schedule" not in scheduler.config:
        raise DirectAlignError(
            f"{folder}: a {type(scheduler).__name__} has no DDPM table: only models trained on one are read, set model.architecture to match"
        )
    for name in ("clip_sample", "thresholding"):
        if scheduler.config.get(name, False):
            raise DirectAlignError(
                f"{folder}: {name} is on, which latents do not survive: set it to false in scheduler_config.json"
            )
    made = cast(DDIMScheduler, DDIMScheduler.from_config(scheduler.config))
    prediction = made.config["prediction_type"]
    if prediction not in PREDICTIONS:
        raise DirectAlignError(
            f"{folder}: prediction_type {prediction} is not read: epsilon and v_prediction are"
        )
    if prediction == "epsilon" and made.alphas_cumprod[-1] == 0:
        raise DirectAlignError(
            f"{folder}: a network that predicts the noise cannot start where nothing else is left: set rescale_betas_zero_snr to false"
        )
    return made


def sigmas(
    scheduler: DDIMScheduler, levels: DDPMTable, num_inference_steps: int
) -> Float64[Tensor, " levels"]:
    """Levels of the scheduler's timesteps under its own spacing and offset, then 0; (n + 1,)."""
    length = len(scheduler.alphas_cumprod)
    scheduler.set_timesteps(min(num_inference_steps, length))
    if num_inference_steps > length or scheduler.timesteps.max() >= length:
        raise DirectAlignError(
            f"rollout.num_inference_steps: {num_inference_steps} does not fit the {length} levels of this model's schedule: ask for fewer"
        )
    visited = levels.sigma_of(scheduler.timesteps)
    return torch.cat([visited, visited.new_zeros(1)])


def default_size(unet: UNet2DConditionModel, vae: AutoencoderKL) -> tuple[int, int]:
    """(height, width) in pixels that the UNet was made for."""
    size = unet.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return height * autoencoder.downscaling(vae), width * autoencoder.downscaling(vae)


def multiple(unet: UNet2DConditionModel, vae: AutoencoderKL) -> int:
    """Pixels that both sides of an image must be a multiple of, to fit the VAE and every halving of the UNet."""
    return 2 ** (len(unet.config["block_out_channels"]) - 1) * autoencoder.downscaling(vae)


def check_channels(folder: FilePath, unet: UNet2DConditionModel, vae: AutoencoderKL) -> None:
    """A UNet that takes more than the latents is for inpainting or editing, and an error."""
    channels, latents = unet.config["in_channels"], vae.config["latent_channels"]
    if channels != latents:
        raise DirectAlignError(
            f"{folder / 'unet'}: takes {channels} channels, text-to-image needs {latents}: inpainting and editing models are not read"
        )


def shift_by_size(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> float:
    """The exponent of the shift for an image of so many tokens; linear in them between the two sizes that the scheduler names."""
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(tokens, *(scheduler.config[name] for name in names))


def euler_grid(
    scheduler: FlowMatchEulerDiscreteScheduler, num_inference_steps: int, exponent: float
) -> Float64[Tensor, " levels"]:
    """The levels that the scheduler visits, falling, and 0 at the end; a scheduler with a fixed shift does not read `exponent`.

    One that ends above 0 (shift_terminal) gives NaN for a single step.
    """
    with np.errstate(invalid="ignore"):
        scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist(),
            mu=exponent,
        )
    return cast(Tensor, scheduler.sigmas).double()


def check_euler(folder: FilePath, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
    """Refuses a checkpoint whose scheduler does something else than Euler from noise to clean; `folder` is the pipeline's."""
    for name in ("stochastic_sampling", "invert_sigmas"):
        if scheduler.config.get(name):
            raise DirectAlignError(
                f"{folder / 'scheduler'}: {name} is on, sampling here is plain Euler: set it to false"
            )
