"""Between images in [0, 1] and latents in the denoiser's scale: x0 = (mode − shift)·scale, shared by all families with an AutoencoderKL."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import config
from ..types import DirectAlignError, Images, Latents


def ready(vae: Any, model: config.ModelConfig, device: torch.device) -> Any:
    """A frozen VAE on the device, in the memory layout that convolutions are fastest in; activations recomputed if the recipe says so."""
    if model.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    return vae.to(device, memory_format=torch.channels_last)


def downscaling(vae: AutoencoderKL) -> int:
    """Pixels per latent along one side."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def encode_image(vae: AutoencoderKL, images: Images) -> Latents:
    """Mode of the posterior, scaled, float32, no gradient."""
    with torch.no_grad():
        posterior = vae.encode(images.to(vae.device, vae.dtype) * 2 - 1, return_dict=False)[0]
    return (posterior.mode().float() - _shift(vae)) * vae.config["scaling_factor"]


def decode_latents(vae: AutoencoderKL, x0: Latents) -> Images:
    """Images around [0, 1], not clamped, float32, gradient intact (recomputed block by block under gradient checkpointing)."""
    latents = x0 / vae.config["scaling_factor"] + _shift(vae)
    return vae.decode(latents.to(vae.dtype), return_dict=False)[0].float() / 2 + 0.5


def latent_size(vae: AutoencoderKL, height: int, width: int, multiple: int) -> tuple[int, int]:
    """(h, w) of the latents of an image; sides that are not a positive multiple of `multiple` pixels are an error."""
    return grid(height, width, downscaling(vae), multiple)


def grid(height: int, width: int, pixels: int, multiple: int) -> tuple[int, int]:
    """(h, w) of an image in cells of `pixels` along a side; sides that are not a positive multiple of `multiple` pixels are an error."""
    if min(height, width) < 1 or height % multiple or width % multiple:
        raise DirectAlignError(
            f"image size {height}x{width}: both sides must be multiples of {multiple} for this model"
        )
    return height // pixels, width // pixels


def _shift(vae: AutoencoderKL) -> float:
    return vae.config.get("shift_factor") or 0.0


def encode_frame(vae: AutoencoderKLQwenImage, images: Images) -> Latents:
    """Mode of the posterior, scaled, float32, no gradient."""
    with torch.no_grad():
        posterior = vae.encode(
            (images.to(vae.device, vae.dtype) * 2 - 1)[:, :, None], return_dict=False
        )[0]
    return (posterior.mode()[:, :, 0].float() - _per_channel(vae, "latents_mean")) / _per_channel(
        vae, "latents_std"
    )


def decode_frame(vae: AutoencoderKLQwenImage, x0: Latents, recompute: bool) -> Images:
    """Images around [0, 1], not clamped, float32, gradient intact; `recompute` drops the blocks' activations until the backward pass."""
    latents = x0 * _per_channel(vae, "latents_std") + _per_channel(vae, "latents_mean")
    decoder = vae.decoder
    hidden = decoder.conv_in(vae.post_quant_conv(latents.to(vae.dtype)[:, :, None]))
    for block in (decoder.mid_block, *decoder.up_blocks):
        hidden = checkpoint(block, hidden, use_reentrant=False) if recompute else block(hidden)
    frames = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(hidden)))
    return frames[:, :, 0].float() / 2 + 0.5


def _per_channel(vae: AutoencoderKLQwenImage, name: str) -> Tensor:
    return torch.tensor(vae.config[name], device=vae.device).view(1, -1, 1, 1)
