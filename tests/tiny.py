"""Tiny random pipelines as complete diffusers folders: tokenizers, text encoders, VAE, denoiser and
scheduler, some 200 kB each.

`write_flux` and `write_sd` are for any test, as are the session fixtures `tiny_flux`, `tiny_sd` and
`tiny_sd_v` (import them into a conftest; folders, not to be written to). Every weight comes from a
seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "star",
    "circle",
    "square",
    "on",
    "sandy",
    "grassy",
    "background",
    "photo",
    "painting",
    ".",
]
SIZE = 32
"""Pixels of a tiny model's images along one side."""
MAX_SEQUENCE_LENGTH = 12


def write_flux(
    folder: Path,
    guidance_embeds: bool = True,
    scheduler: dict[str, Any] | None = None,
    in_channels: int | None = None,
    seed: int = 0,
) -> Path:
    """A FluxPipeline of 16 image and 12 text tokens; `scheduler` overrides a static shift of 3."""
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | (scheduler or {})),
        vae=autoencoder(latent_channels=4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip_text_model(clip, 16),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(t5), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            in_channels=in_channels or 16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(2, 2, 4),
        ),
    )
    return _save(pipeline, folder)


def write_sd(
    folder: Path,
    prediction_type: str = "epsilon",
    scheduler: dict[str, Any] | None = None,
    in_channels: int | None = None,
    seed: int = 0,
) -> Path:
    """A StableDiffusionPipeline with a two-level UNet; `scheduler` overrides the settings of SD 1.5
    (but with `set_alpha_to_one`)."""
    torch.manual_seed(seed)
    clip = clip_tokenizer()
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
    }
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(latent_channels=4, shift_factor=None, scaling_factor=0.4),
        text_encoder=clip_text_model(clip, 16),
        tokenizer=clip,
        unet=UNet2DConditionModel(
            sample_size=SIZE // 4,
            in_channels=in_channels or 4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            norm_num_groups=4,
            attention_head_dim=2,
        ),
        scheduler=DDIMScheduler(
            **settings | {"prediction_type": prediction_type} | (scheduler or {})
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _save(pipeline, folder)


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""Scheduler settings under which sampling starts at alpha = 0 exactly."""


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX with embedded guidance and a static shift."""
    return write_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD that predicts the noise."""
    return write_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def tiny_sd_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD that predicts v, with zero terminal SNR."""
    return write_sd(tmp_path_factory.mktemp("sd_v"), "v_prediction", ZERO_SNR)


def clip_tokenizer() -> CLIPTokenizer:
    """Whole words of `WORDS` and single letters; sequences of 16 tokens."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [
        "<|startoftext|>",
        "<|endoftext|>",
        *letters,
        *(letter + "</w>" for letter in letters),
    ]
    merges = []
    for word in (word for word in WORDS if len(word) > 1):
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = [pieces[0] + pieces[1]]
            tokens.append(pieces[0])
    vocab = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocab,
        merges=[tuple(pair.split()) for pair in dict.fromkeys(merges)],
        model_max_length=16,
    )


def t5_tokenizer() -> T5TokenizerFast:
    """Whole words of `WORDS` and single letters."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -4.0),
        *((f"▁{word}", -2.0) for word in WORDS),
    ]
    known = {piece for piece, _ in pieces}
    letters = [(chr(code), -8.0) for code in range(33, 127) if chr(code) not in known]
    return T5TokenizerFast(
        vocab=[*pieces, *letters], extra_ids=0, model_max_length=MAX_SEQUENCE_LENGTH
    )


def clip_text_model(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    """One layer, for that tokenizer."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=16,
            projection_dim=width,
            **sizes,
            **ids,
        )
    )


def autoencoder(
    latent_channels: int, shift_factor: float | None, scaling_factor: float
) -> AutoencoderKL:
    """Four pixels per latent along one side."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
    )


def _save(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    if isinstance(pipeline, FluxPipeline):
        (folder / "directalign.json").write_text(
            json.dumps({"max_sequence_length": MAX_SEQUENCE_LENGTH})
        )
    return folder
