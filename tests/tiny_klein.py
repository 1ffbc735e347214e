"""A tiny random FLUX.2 klein as a complete diffusers folder; every weight comes from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen3ForCausalLM

from tiny import SIZE
from tiny_qwen import qwen_tokenizer
from tiny_z_image import qwen3_config


def write_klein(
    folder: Path,
    is_distilled: bool = False,
    scheduler: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """A Flux2KleinPipeline of 16 image and 512 text tokens; `scheduler` overrides the shift by size
    and steps, `transformer` the denoiser's settings."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            **{"shift": 3.0, "use_dynamic_shifting": True} | (scheduler or {})
        ),
        vae=_autoencoder(),
        text_encoder=Qwen3ForCausalLM(qwen3_config(len(tokenizer), layers=28, width=8)),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(**_transformer_settings() | (transformer or {})),
        is_distilled=is_distilled,
    )
    pipeline.save_pretrained(folder)
    return folder


def _autoencoder() -> AutoencoderKLFlux2:
    """Four pixels per latent along one side, and statistics that are not those of a fresh batch
    norm."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def _transformer_settings() -> dict[str, Any]:
    layers = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
    }
    return {
        "in_channels": 16,
        "joint_attention_dim": 3 * 8,
        "axes_dims_rope": (2, 2, 2, 2),
        "guidance_embeds": False,
        **layers,
    }
