"""Images in [0, 1] to latents in the denoiser's scale and back.

AutoencoderKL: x0 = (mode − shift_factor)·scaling_factor; Qwen-Image's: by the mean and std of each
channel.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import config
from ..types import DirectAlignError, Images, Latents


def ready(vae: Any, model: config.ModelConfig, device: torch.device) -> Any:
    """A frozen VAE on the device, channels last, with gradient checkpointing as in the recipe."""
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


def encode_image(vae: Any, images: Images) -> Latents:
    """Mode of the posterior, scaled, float32, no gradient."""
    shift = vae.config.get("shift_factor") or 0.0
    return (posterior_mode(vae, images) - shift) * vae.config["scaling_factor"]


def decode_latents(vae: Any, x0: Latents) -> Images:
    """Images around [0, 1], not clamped, float32, gradient intact."""
    shift = vae.config.get("shift_factor") or 0.0
    return decode_unscaled(vae, x0 / vae.config["scaling_factor"] + shift)


def encode_frame(vae: AutoencoderKLQwenImage, images: Images) -> Latents:
    """Mode of the posterior of one frame, scaled, float32, no gradient."""
    with torch.no_grad():
        frames = (images.to(vae.device, vae.dtype) * 2 - 1)[:, :, None]
        mode = vae.encode(frames, return_dict=False)[0].mode()[:, :, 0].float()
    return (mode - _per_channel(vae, "latents_mean")) / _per_channel(vae, "latents_std")


def decode_frame(vae: AutoencoderKLQwenImage, x0: Latents, recompute: bool) -> Images:
    """Images around [0, 1], not clamped (the VAE's own call clamps), float32, gradient intact.

    `recompute` drops the blocks' activations and computes them again in the backward pass.
    """
    latents = x0 * _per_channel(vae, "latents_std") + _per_channel(vae, "latents_mean")
    decoder = vae.decoder
    hidden = decoder.conv_in(vae.post_quant_conv(latents.to(vae.dtype)[:, :, None]))
    for block in (decoder.mid_block, *decoder.up_blocks):
        hidden = checkpoint(block, hidden, use_reentrant=False) if recompute else block(hidden)
    frames = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(hidden)))
    return frames[:, :, 0].float() / 2 + 0.5


def _per_channel(vae: AutoencoderKLQwenImage, name: str) -> Tensor:
    return torch.tensor(vae.config[name], device=vae.device).view(1, -1, 1, 1)
