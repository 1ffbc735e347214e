"""Images in [0, 1] to latents in the denoiser's scale and back.

The scale itself is the model's: see `encode_image` and `decode` of `common` and of each file.
"""

import math
from typing import Any

import torch

from .. import config
from ..types import DirectAlignError, Images, Latents


def ready(vae: Any, model: config.ModelConfig, device: torch.device) -> Any:
    """A frozen VAE on the device, channels last, with gradient checkpointing as in the recipe."""
    for key in vae.config.keys() & {"scaling_factor", "shift_factor"}:
        value, is_shift = vae.config[key], key == "shift_factor"
        usable = isinstance(value, int | float) and math.isfinite(value) and (is_shift or value > 0)
        if not usable and not (is_shift and value is None):
            raise DirectAlignError(
                f"{model.path}: vae/config.json: {key} is {value}, and a number is needed; restore "
                "the file"
            )
    if model.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    return vae.to(device, memory_format=torch.channels_last)


def downscaling(vae: Any) -> int:
    """Pixels per latent along one side."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def grid(height: int, width: int, cell: int, multiple: int) -> tuple[int, int]:
    """(h, w) of an image in cells of `cell` pixels a side.

    Raises DirectAlignError for sides that are not positive multiples of `multiple` pixels.
    """
    if min(height, width) < 1 or height % multiple or width % multiple:
        raise DirectAlignError(
            f"image size {height}x{width}: both sides must be multiples of {multiple} for this "
            "model"
        )
    return height // cell, width // cell


def posterior_mode(vae: Any, images: Images) -> Latents:
    """Mode of the posterior, unscaled, float32, no gradient."""
    with torch.no_grad():
        posterior = vae.encode(images.to(vae.device, vae.dtype) * 2 - 1, return_dict=False)[0]
        return posterior.mode().float()


def decode_unscaled(vae: Any, latents: Latents) -> Images:
    """Images around [0, 1] of unscaled latents, not clamped, float32, gradient intact."""
    return vae.decode(latents.to(vae.dtype), return_dict=False)[0].float() / 2 + 0.5
