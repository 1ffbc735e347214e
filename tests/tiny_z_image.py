"""A tiny random Z-Image as a complete diffusers folder; every weight comes from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from tiny import autoencoder
from tiny_qwen import qwen_tokenizer


def write_z_image(
    folder: Path,
    scheduler: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """A ZImagePipeline of 16 image tokens; `scheduler` overrides a static shift of 3, `transformer`
    the denoiser's settings."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    denoiser = ZImageTransformer2DModel(**_transformer_settings() | (transformer or {}))
    for token in (denoiser.x_pad_token, denoiser.cap_pad_token):
        torch.nn.init.normal_(token)
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | (scheduler or {})),
        vae=autoencoder(latent_channels=4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=Qwen3Model(qwen3_config(len(tokenizer), layers=3, width=16)),
        tokenizer=tokenizer,
        transformer=denoiser,
    )
    pipeline.save_pretrained(folder)
    return folder


def qwen3_config(vocabulary: int, layers: int, width: int) -> Qwen3Config:
    """Two heads, one for keys and values."""
    sizes = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "head_dim": width // 2,
    }
    return Qwen3Config(
        vocab_size=vocabulary,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=None,
        **sizes,
    )


def _transformer_settings() -> dict[str, Any]:
    heads = {"n_heads": 2, "n_kv_heads": 2, "axes_dims": [4, 2, 2], "axes_lens": [1024, 32, 32]}
    return {
        "in_channels": 4,
        "dim": 16,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "cap_feat_dim": 16,
        **heads,
    }
