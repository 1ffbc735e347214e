"""Images in [0, 1] to latents in the denoiser's scale and back.

The scale itself is the model's: see `encode_image` and `decode` of `common` and of each file.
"""

import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.utils.checkpoint import checkpoint

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


class BlockLatents:
    """Latents of an AutoencoderKLFlux2: (b, 4c, h/2, w/2) in blocks of 2x2, scaled by the running
    mean and variance of a batch norm in the VAE. Beside `DiffusersModel`."""

    vae: Any
    multiple: int
    epsilon: float | None = None
    """Of the batch norm; None reads it from the VAE's config."""

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]: posterior mode in blocks, scaled, no gradient."""
        mean, std = self._statistics()
        return (pixel_unshuffle(posterior_mode(self.vae, images), 2) - mean) / std

    def decode(self, x0: Latents) -> Images:
        mean, std = self._statistics()
        return decode_unscaled(self.vae, pixel_shuffle(x0 * std + mean, 2))

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of a block, from the VAE's batch norm."""
        norm, epsilon = self.vae.bn, self.epsilon or self.vae.config["batch_norm_eps"]
        mean, variance = (
            each.float().view(1, -1, 1, 1) for each in (norm.running_mean, norm.running_var)
        )
        return mean, (variance + epsilon).sqrt()

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(4c, h, w) in blocks of 2x2 latents, which must fill both sides."""
        channels = 4 * self.vae.config["latent_channels"]
        return channels, *grid(height, width, self.multiple, self.multiple)


class VideoLatents:
    """Latents of one frame of a causal video VAE (AutoencoderKLQwenImage), scaled by a mean and a
    deviation for each channel. Beside `DiffusersModel`."""

    vae: Any
    model: config.ModelConfig
    downscaling: int
    """Pixels per latent along one side."""
    up_options: Mapping[str, Any] = MappingProxyType({})
    """Further arguments of the decoder's blocks that upsample."""

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]: scaled mode of the posterior, no gradient."""
        return self._encoded(images)

    def decode(self, x0: Latents) -> Images:
        return self._decoded(x0)

    def _encoded(self, images: Tensor) -> Latents:
        """`encode_image` of images of any number of channels."""
        with torch.no_grad():
            frames = (images.to(self.vae.device, self.vae.dtype) * 2 - 1)[:, :, None]
            mode = self.vae.encode(frames, return_dict=False)[0].mode()[:, :, 0].float()
        return (mode - self._per_channel("latents_mean")) / self._per_channel("latents_std")

    def _decoded(self, x0: Latents) -> Tensor:
        """`decode` to any number of channels, without the clamp of the VAE's own call.

        With gradient checkpointing, its blocks run again in the backward pass.
        """
        latents = x0 * self._per_channel("latents_std") + self._per_channel("latents_mean")
        decoder, recompute = self.vae.decoder, self.model.gradient_checkpointing
        hidden = self.vae.post_quant_conv(latents.to(self.vae.dtype)[:, :, None])
        hidden = decoder.conv_in(hidden)
        ups = [partial(block, **self.up_options) for block in decoder.up_blocks]
        for block in (decoder.mid_block, *ups):
            hidden = checkpoint(block, hidden, use_reentrant=False) if recompute else block(hidden)
        frames = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(hidden)))
        return frames[:, :, 0].float() / 2 + 0.5

    def _per_channel(self, name: str) -> Tensor:
        return torch.tensor(self.vae.config[name], device=self.vae.device).view(1, -1, 1, 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w); both sides must be multiples of 2x2 latents."""
        cell = self.downscaling
        return self.vae.config["z_dim"], *grid(height, width, cell, 2 * cell)
