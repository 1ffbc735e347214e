"""What each denoiser is called with, as shapes: the one thing about a family that its config does not say.

Latents are (b, c, h, w) as everywhere; `tokens` are those of the prompt at their most, since prompts differ in length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import common

TIME_IDS = 6
"""Numbers that SDXL is told about the size of its image."""


@dataclass(frozen=True)
class Shape:
    """Of one call: samples, height and width of the latents, tokens of the prompt, dtype of the network."""

    b: int
    h: int
    w: int
    tokens: int
    dtype: torch.dtype


Settings = Mapping[str, Any]


def arguments(family: str, config: Settings, shape: Shape) -> dict[str, Any]:
    """Arguments of the denoiser's forward, made of tensors without content."""
    return {**CALLS[family](config, shape), "return_dict": False}


def _flux(config: Settings, of: Shape) -> dict[str, Any]:
    cpu = torch.device("cpu")
    return {
        "hidden_states": torch.empty(of.b, of.h * of.w // 4, config["in_channels"], dtype=of.dtype),
        "timestep": torch.empty(of.b),
        "guidance": torch.empty(of.b) if config.get("guidance_embeds") else None,
        "pooled_projections": torch.empty(of.b, config["pooled_projection_dim"], dtype=of.dtype),
        "encoder_hidden_states": _sequence(config, of),
        "txt_ids": common.text_ids(of.tokens, cpu),
        "img_ids": common.image_ids(of.h, of.w, cpu),
    }


def _flux2_klein(config: Settings, of: Shape) -> dict[str, Any]:
    blocks = of.h * of.w // 4
    return {
        "hidden_states": torch.empty(of.b, blocks, config["in_channels"], dtype=of.dtype),
        "timestep": torch.empty(of.b),
        "guidance": None,
        "encoder_hidden_states": _sequence(config, of),
        "txt_ids": torch.empty(of.tokens, len(config["axes_dims_rope"])),
        "img_ids": torch.empty(blocks, len(config["axes_dims_rope"])),
    }


def _sd3(config: Settings, of: Shape) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(of.b, config["in_channels"], of.h, of.w, dtype=of.dtype),
        "timestep": torch.empty(of.b),
        "pooled_projections": torch.empty(of.b, config["pooled_projection_dim"], dtype=of.dtype),
        "encoder_hidden_states": _sequence(config, of),
    }


def _sd(config: Settings, of: Shape) -> dict[str, Any]:
    return {
        "sample": torch.empty(of.b, config["in_channels"], of.h, of.w, dtype=of.dtype),
        "timestep": torch.empty(of.b),
        "encoder_hidden_states": torch.empty(
            of.b, of.tokens, config["cross_attention_dim"], dtype=of.dtype
        ),
    }


def _sdxl(config: Settings, of: Shape) -> dict[str, Any]:
    pooled = (
        config["projection_class_embeddings_input_dim"]
        - TIME_IDS * config["addition_time_embed_dim"]
    )
    told = {
        "text_embeds": torch.empty(of.b, pooled, dtype=of.dtype),
        "time_ids": torch.empty(of.b, TIME_IDS),
    }
    return {**_sd(config, of), "added_cond_kwargs": told}


def _qwen_image(config: Settings, of: Shape) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(of.b, of.h * of.w // 4, config["in_channels"], dtype=of.dtype),
        "timestep": torch.empty(of.b),
        "encoder_hidden_states": _sequence(config, of),
        "encoder_hidden_states_mask": None,
        "img_shapes": [[(1, of.h // 2, of.w // 2)]] * of.b,
    }


def _z_image(config: Settings, of: Shape) -> dict[str, Any]:
    frames = torch.empty(of.b, config["in_channels"], 1, of.h, of.w, dtype=of.dtype)
    sequences = torch.empty(of.b, of.tokens, config["cap_feat_dim"], dtype=of.dtype)
    return {
        "x": list(frames.unbind()),
        "t": torch.empty(of.b),
        "cap_feats": list(sequences.unbind()),
    }


def _sequence(config: Settings, of: Shape) -> Tensor:
    return torch.empty(of.b, of.tokens, config["joint_attention_dim"], dtype=of.dtype)


CALLS: dict[str, Callable[[Settings, Shape], dict[str, Any]]] = {
    "flux": _flux,
    "flux2_klein": _flux2_klein,
    "sd3": _sd3,
    "sd": _sd,
    "sdxl": _sdxl,
    "qwen_image": _qwen_image,
    "z_image": _z_image,
}


def answer(out: Any) -> Tensor:
    """The prediction in what the network returned, as one float32 tensor."""
    pred = out[0]
    return torch.stack(list(pred)).float() if isinstance(pred, list | tuple) else pred.float()
