"""A transformers CLIPModel written as open_clip writes it, for tests of files in that layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel

NAMES = (
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("visual_projection.weight", "visual.proj"),
    ("text_projection.weight", "text_projection"),
)


def open_clip_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a CLIPModel folder in open_clip's layout."""
    ours = CLIPModel.from_pretrained(folder).state_dict()
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            continue
        if ".self_attn.q_proj." in name:
            tensor = torch.cat(
                [ours[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            )
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        for old, new in NAMES:
            name = name.replace(old, new)
        theirs[name] = (
            tensor.T if name in ("visual.proj", "text_projection") else tensor
        ).contiguous()
    return theirs


def write_open_clip(
    folder: Path, clip_folder: Path, name: str = "weights.pt", config: bool = True
) -> Path:
    """A file as HPSv2 publishes its own, and the config beside it; the CLIP of `clip_folder` has
    two heads in both towers, and quick_gelu."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 3, "state_dict": open_clip_weights(clip_folder)}, folder / name)
    if config:
        settings = {
            "embed_dim": 8,
            "quick_gelu": True,
            "vision_cfg": {"width": 16, "head_width": 8},
            "text_cfg": {"width": 16, "heads": 2},
        }
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    return folder / name
