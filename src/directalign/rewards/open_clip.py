"""An open_clip file of weights (HPSv2.1, LAION, DataComp, ...) as a transformers CLIPModel: names turned, fused projections split.

What model it is, and which are refused, is found in `open_clip_config`. Layout: github.com/mlfoundations/open_clip, class CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging

from .open_clip_config import TEXT_BLOCKS, VISION_BLOCKS, clip_config
from .published import Shapes, check_tensors, read_shapes, read_weights

TOWERS = {"vision_model": VISION_BLOCKS, "text_model": TEXT_BLOCKS}
BLOCK = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
FUSED = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}
"""Thirds of attn.in_proj."""
OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": "visual.proj",
    "logit_scale": "logit_scale",
}
TRANSPOSED = ("text_projection.weight", "visual_projection.weight")
UNUSED = ("attn_mask", "logit_bias", "input_resolution", "context_length", "vocab_size")
"""What old files hold beside the weights."""


def load(file: Path, key: str, activation: str | None = None) -> CLIPModel:
    """The CLIPModel of an open_clip file, float32, on the CPU; errors as `describe`."""
    weights = _bare(read_weights(file, f"{key}.path"))
    described = _described({name: tuple(tensor.shape) for name, tensor in weights.items()}, file, key, activation)
    turned = {name: _taken(name, weights[_source(name)]) for name in _wanted(described)}
    logging.disable_progress_bar()
    model: Any = CLIPModel.from_pretrained(None, config=described, state_dict=turned, dtype=torch.float32)
    return model


def describe(file: Path, key: str, activation: str | None = None) -> CLIPConfig:
    """The config of an open_clip file's model, without reading the numbers.

    Raises DirectAlignError, which blames the recipe's `key` and names the file: cut short, pickled objects, another architecture, a
    tensor that is missing, unknown or misshapen, an activation or a head width that cannot be known.
    """
    return _described(_bare(read_shapes(file, f"{key}.path")), file, key, activation)


def _bare(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Without the `text.` of files whose text tower is a module of its own, and without what is unused."""
    found = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in found.items() if name not in UNUSED}


def _described(shapes: Shapes, file: Path, key: str, activation: str | None) -> CLIPConfig:
    described = clip_config(shapes, file, key, activation)
    wanted = {_source(name): _stored(name, shape) for name, shape in _wanted(described).items()}
    held = {name: () if name == "logit_scale" else shape for name, shape in shapes.items()}  # some files hold it as a list of one
    check_tensors(wanted, held, file, f"{key}.path", "CLIP of open_clip")
    return described


def _wanted(described: CLIPConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in CLIPModel(described).state_dict().items()}


def _stored(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if name in TRANSPOSED else (3 * shape[0], *shape[1:]) if _third(name) is not None else shape


def _taken(name: str, tensor: Tensor) -> Tensor:
    third = _third(name)
    if third is not None:
        return tensor.chunk(3)[third].contiguous()
    return tensor.reshape(()) if name == "logit_scale" else tensor.T.contiguous() if name in TRANSPOSED else tensor


def _third(name: str) -> int | None:
    return next((third for part, third in FUSED.items() if f".{part}." in name), None)


def _source(name: str) -> str:
    """The name in an open_clip file of what transformers calls `name`."""
    tower, layer, rest = name.partition(".encoder.layers.")
    if not layer:
        stem, _, end = name.rpartition(".")
        return OUTSIDE.get(name) or f"{OUTSIDE[stem]}.{end}"
    number, _, rest = rest.partition(".")
    part, _, end = rest.rpartition(".")
    inside = f"attn.in_proj_{end}" if part in FUSED else f"{BLOCK[part]}.{end}"
    return f"{TOWERS[tower]}.{number}.{inside}"
