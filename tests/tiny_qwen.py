"""A tiny random Qwen-Image as a complete diffusers folder, and the byte-level tokenizer that the
tiny Z-Image and FLUX.2 klein share.

`write_qwen_image` is for any test. Every weight comes from a seed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from tiny import WORDS

SIZE = 32
"""Pixels of a tiny model's images along one side."""
LATENTS_MEAN = [0.1, -0.2, 0.3, 0.0]
LATENTS_STD = [1.5, 0.8, 1.2, 2.0]
INSTRUCTION = "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the objects and background"  # noqa: E501
CHAT = """{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"""  # noqa: E501
"""How Qwen3 is asked, without tools."""


def write_qwen_image(
    folder: Path,
    scheduler: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """A QwenImagePipeline of 16 image tokens; `scheduler` overrides the shift by size that
    Qwen-Image has, `transformer` the denoiser's settings."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**_shift_by_size() | (scheduler or {})),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=LATENTS_MEAN,
            latents_std=LATENTS_STD,
        ),
        text_encoder=_text_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(**_transformer_settings() | (transformer or {})),
    )
    pipeline.save_pretrained(folder)
    return folder


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Bytes, and whole words of `WORDS` and of Qwen-Image's instruction, which with its frame is 34
    tokens long as in the real vocabulary."""
    spaced = [
        f"Ġ{word}"
        for word in dict.fromkeys([*re.findall("[a-z]+", INSTRUCTION), *WORDS])
        if word.isalpha()
    ]
    tokens, merges = sorted(ByteLevel.alphabet()), []
    for word in [*spaced, "system", "user", "assistant", "Describe"]:
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
            tokens.append(word[: end + 1])
    vocab = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=list(dict.fromkeys(merges)),
        eos_token="<|im_end|>",
        chat_template=CHAT,
        model_max_length=4096,
    )
    tokenizer.add_tokens(
        [AddedToken(name, special=True) for name in ("<|im_start|>", "<think>", "</think>")]
    )
    return tokenizer


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def _shift_by_size() -> dict[str, Any]:
    """The released scheduler's settings, for images of a few tokens."""
    return {
        "use_dynamic_shifting": True,
        "base_image_seq_len": 4,
        "max_image_seq_len": 64,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "shift_terminal": 0.02,
    }


def _transformer_settings() -> dict[str, Any]:
    sizes = {
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
    }
    return {"in_channels": 16, "out_channels": 4, "axes_dims_rope": (2, 2, 4), **sizes}
