"""A FLUX and a CLIP with real shapes and random weights, as folders that the package's own loaders
read.

    write_flux(folder, "flux")    the transformer, VAE and CLIP of FLUX.1-dev; of T5 one layer of 24, since prompts are encoded once
    write_flux(folder, "tiny")    the same architecture, small enough for a CPU
    write_reward(folder, "flux")  CLIP ViT-H/14, as PickScore and HPSv2 have it

Tokenizers are those of the embedded world: which tokens a random network reads makes no difference
to its cost.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
)

from directalign.toyworld import assets

KNOWN = Path(__file__).parent.parent / "src/directalign/models/known"
TINY_TRANSFORMER = {
    "num_layers": 2,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "axes_dims_rope": [8, 12, 12],
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
}
TINY_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4}
TINY_CLIP_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
}
TINY_VAE = {
    "block_out_channels": [8, 8, 8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_size": 64,
}
TINY_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SCHEDULER = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def write_flux(
    folder: Path,
    size: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Path:
    """A FluxPipeline in `folder`, in `dtype`; the weights are drawn on `device`. An existing one is
    kept."""
    if (folder / "model_index.json").is_file():
        return folder
    parts, tiny = _known("flux_1_dev"), size == "tiny"
    torch.manual_seed(seed)
    clip, t5 = (
        AutoTokenizer.from_pretrained(assets.resolve("world:flux") / name)
        for name in ("tokenizer", "tokenizer_2")
    )
    t5_config = {**parts["text_encoder_2"], "num_layers": 1} | (TINY_T5 if tiny else {})
    clip_config = parts["text_encoder"] | (TINY_CLIP_TEXT if tiny else {})
    with torch.device(device), _default(dtype):
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
            vae=AutoencoderKL(**parts["vae"] | (TINY_VAE if tiny else {})),
            text_encoder=CLIPTextModel(CLIPTextConfig(**clip_config)),
            tokenizer=clip,
            text_encoder_2=T5EncoderModel(T5Config(**t5_config)),
            tokenizer_2=t5,
            transformer=FluxTransformer2DModel(
                **parts["transformer"] | (TINY_TRANSFORMER if tiny else {})
            ),
        )
    pipeline.save_pretrained(folder, max_shard_size="5GB")
    return folder


def write_reward(
    folder: Path, size: str, device: torch.device | str = "cpu", seed: int = 0
) -> Path:
    """A CLIPModel in `folder`, float32, with the preprocessing and tokenizer of the embedded
    reward. An existing one is kept."""
    if (folder / "config.json").is_file():
        return folder
    config = CLIPConfig.from_dict(_known_reward() if size != "tiny" else _tiny_clip())
    torch.manual_seed(seed)
    with torch.device(device):
        CLIPModel(config).save_pretrained(folder)
    source = assets.resolve("world:reward")
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "vocab", "merges")):
            shutil.copy(file, folder / file.name)
    side = config.vision_config.image_size
    settings = json.loads((source / "preprocessor_config.json").read_text()) | {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def _known(name: str) -> dict[str, dict[str, Any]]:
    parts = json.loads((KNOWN / f"{name}.json").read_text())["parts"]
    return {
        part: {key: value for key, value in config.items() if not key.startswith("_")}
        for part, config in parts.items()
    }


def _known_reward() -> dict[str, Any]:
    return json.loads((KNOWN / "clip_vit_h.json").read_text())["parts"]["reward"]


def _tiny_clip() -> dict[str, Any]:
    return {
        "text_config": {**TINY_CLIP, "vocab_size": 49408},
        "vision_config": {**TINY_CLIP, "image_size": 64, "patch_size": 16},
        "projection_dim": 32,
    }


class _default:
    """New tensors have this dtype inside."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.former = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.former)
