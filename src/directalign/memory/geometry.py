"""Sizes: of images by default, what their sides must be multiples of, and of latents and prompts that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import config
from ..models.weight_files import read_json
from .architecture import Architecture

QWEN_SIDE = 128
"""Latents on a side of Qwen-Image's default image; neither of its configs says so."""
T5_TOKENS = {"flux": 512, "sd3": 256}
"""Tokens of T5 that a prompt is padded to."""
LLM_TOKENS = 512
"""The most tokens of a prompt, for families that read it with a language model."""
CLIP_TOKENS = 77


@dataclass(frozen=True)
class Geometry:
    """Of one checkpoint: pixels per latent along a side, `multiple` of both sides, default size, channels of a latent, `largest` side (None: any)."""

    downscaling: int
    multiple: int
    default_size: tuple[int, int]
    channels: int
    largest: int | None = None

    def latents(self, b: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(b, c, h, w) for images of `size`."""
        return b, self.channels, size[0] // self.downscaling, size[1] // self.downscaling


def geometry(run: config.RunConfig, found: Architecture) -> Geometry:
    """Read off the configs of the VAE and the denoiser."""
    vae, family = found.parts["vae"].config, run.model.architecture
    downscaling = 2 ** (
        len(vae["temperal_downsample"])
        if family == "qwen_image"
        else len(vae["block_out_channels"]) - 1
    )
    channels = vae["z_dim"] if family == "qwen_image" else vae["latent_channels"]
    if family in ("sd", "sdxl"):
        unet = found.parts["unet"].config
        return Geometry(
            downscaling,
            2 ** (len(unet["block_out_channels"]) - 1) * downscaling,
            _side(unet["sample_size"], downscaling),
            channels,
        )
    if family == "sd3":
        network = found.parts["transformer"].config
        patch, most = (
            network.get("patch_size", 2) * downscaling,
            network.get("pos_embed_max_size", 96),
        )
        return Geometry(
            downscaling,
            patch,
            _side(network["sample_size"], downscaling),
            channels,
            most and most * patch,
        )
    default = (
        _side(QWEN_SIDE, downscaling) if family == "qwen_image" else _side(vae["sample_size"], 1)
    )
    return Geometry(downscaling, 2 * downscaling, default, channels)


def image_size(run: config.RunConfig, of: Geometry) -> tuple[int, int]:
    """(height, width) in pixels: the recipe's, else the size the checkpoint was made for."""
    return run.rollout.height or of.default_size[0], run.rollout.width or of.default_size[1]


def largest_size(run: config.RunConfig, of: Geometry) -> tuple[int, int]:
    """The (height, width) that training takes the most memory for: of the recipe's sizes and buckets, else its only one."""
    offline = run.data.buckets or ([image_size(run, of)] if run.data.images is not None else [])
    online = (run.rollout.sizes or [image_size(run, of)]) if run.data.prompts is not None else []
    return max([*online, *offline], key=lambda size: size[0] * size[1])


def prompt_tokens(family: str, found: Architecture) -> int:
    """Tokens that the denoiser sees of a prompt, at their most."""
    clip = _positions(found.parts.get("text_encoder"))
    if family == "flux":
        return _told_length(found, T5_TOKENS[family])
    if family == "sd3":
        return clip + T5_TOKENS[family]
    return clip if family in ("sd", "sdxl") else LLM_TOKENS


def encoder_tokens(family: str, found: Architecture, part: str) -> int:
    """Tokens that one text encoder is given, at their most."""
    if found.parts[part].class_name.startswith("CLIP"):
        return _positions(found.parts[part])
    return _told_length(found, T5_TOKENS[family]) if family in T5_TOKENS else LLM_TOKENS


def _told_length(found: Architecture, usual: int) -> int:
    """Of T5; a folder of the embedded world says its own."""
    extra = found.folder / "directalign.json" if found.folder is not None else None
    return (
        read_json(extra).get("max_sequence_length", usual)
        if extra is not None and extra.exists()
        else usual
    )


def _positions(part: Any) -> int:
    settings: Mapping[str, Any] = part.config if part is not None else {}
    return settings.get("max_position_embeddings", CLIP_TOKENS)


def _side(size: Any, scale: int) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height * scale, width * scale
