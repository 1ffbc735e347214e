"""Between images in [0, 1] and latents in Qwen-Image's scale: x0 = (mode − mean)/std per channel, one frame of a causal video VAE.

The single frame never meets the VAE's memory of earlier frames, so the decoder is called without it, and without the clamp to
[−1, 1] that ends the library's decode: a reward's gradient must reach pixels beyond that too.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..types import Images, Latents


def encode(vae: AutoencoderKLQwenImage, images: Images) -> Latents:
    """Mode of the posterior, scaled, float32, no gradient."""
    with torch.no_grad():
        posterior = vae.encode((images.to(vae.device, vae.dtype) * 2 - 1)[:, :, None], return_dict=False)[0]
    return (posterior.mode()[:, :, 0].float() - _per_channel(vae, "latents_mean")) / _per_channel(vae, "latents_std")


def decode(vae: AutoencoderKLQwenImage, x0: Latents, recompute: bool) -> Images:
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
