"""A tiny random Stable Diffusion 3 or 3.5 as a complete diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tiny import SIZE, autoencoder, clip_tokenizer, t5_tokenizer
from tiny_sdxl import padding_with_exclamation_marks, two_layer_clip

MEDIUM = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
"""What SD3.5-medium has and SD3 has not: a second attention in some blocks, normalised queries and
keys."""


def write_sd3(
    folder: Path,
    t5: bool = True,
    scheduler: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """A StableDiffusion3Pipeline of 16 image tokens, 24 at the most along a side; without `t5` its
    third text encoder is null.

    `scheduler` overrides a static shift of 3, `transformer` the settings of the denoiser.
    """
    torch.manual_seed(seed)
    first, second = clip_tokenizer(), padding_with_exclamation_marks(clip_tokenizer())
    third = t5_tokenizer() if t5 else None
    pipeline = StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | (scheduler or {})),
        vae=autoencoder(latent_channels=16, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=two_layer_clip(CLIPTextModelWithProjection, first, width=16, projection=12),
        tokenizer=first,
        text_encoder_2=two_layer_clip(CLIPTextModelWithProjection, second, width=8, projection=20),
        tokenizer_2=second,
        text_encoder_3=third
        and T5EncoderModel(
            T5Config(vocab_size=len(third), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        tokenizer_3=third,
        transformer=SD3Transformer2DModel(**_transformer_settings() | (transformer or {})),
    )
    pipeline.save_pretrained(folder)
    return folder


def _transformer_settings() -> dict[str, Any]:
    return {
        "sample_size": SIZE // 4,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 12 + 20,
        "pos_embed_max_size": 24,
    }
