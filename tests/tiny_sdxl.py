"""A tiny random Stable Diffusion XL as a complete diffusers folder, with the parts it shares with
tiny SD3.

Unlike `tiny.py`'s, these text encoders have two layers, so that the penultimate hidden state is not
the last one, and the second tokenizer pads with "!", as OpenCLIP's does, so that a mix-up of the
two shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tiny import SIZE, autoencoder, clip_tokenizer

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
"""Settings of SDXL 1.0, whose folder names another sampler than DDIM."""


def write_sdxl(
    folder: Path,
    prediction_type: str = "epsilon",
    scheduler: dict[str, Any] | None = None,
    unet: dict[str, Any] | None = None,
    force_zeros_for_empty_prompt: bool = True,
    force_upcast: bool = True,
    seed: int = 0,
) -> Path:
    """A StableDiffusionXLPipeline with a two-level UNet; `scheduler` and `unet` override its
    settings."""
    torch.manual_seed(seed)
    first, second = clip_tokenizer(), padding_with_exclamation_marks(clip_tokenizer())
    vae = autoencoder(latent_channels=4, shift_factor=None, scaling_factor=0.4)
    vae.register_to_config(force_upcast=force_upcast)
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=two_layer_clip(CLIPTextModel, first, width=16),
        text_encoder_2=two_layer_clip(CLIPTextModelWithProjection, second, width=8, projection=12),
        tokenizer=first,
        tokenizer_2=second,
        unet=UNet2DConditionModel(**_unet_settings() | (unet or {})),
        scheduler=EulerDiscreteScheduler(
            **SCHEDULER | {"prediction_type": prediction_type} | (scheduler or {})
        ),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _unet_settings() -> dict[str, Any]:
    """Six time ids of 4 numbers each beside a pooled embedding of 12; the text sequence is 16 + 8
    wide."""
    return {
        "sample_size": SIZE // 4,
        "in_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "cross_attention_dim": 24,
        "norm_num_groups": 4,
        "attention_head_dim": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 12,
    }


def two_layer_clip(
    kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
    width: int,
    projection: int = 16,
) -> Any:
    """A CLIP text encoder of `width` for `clip_tokenizer`'s words, whose pooled output is
    `projection` wide if it has one."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": projection,
    }
    return kind(
        CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **sizes, **ids)
    )


def padding_with_exclamation_marks(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """The same words, padded with "!" in place of the end token."""
    tokenizer.pad_token = "!"
    return tokenizer
