"""A BLIP in its makers' layout, as ImageReward.pt holds it, as transformers modules: what size it is, its names, and the tensors put in place.

Sizes are read off the tensors. What no tensor tells is as published (heads 64 wide, exact gelu, the epsilons), or from med_config.json
beside the file. Layout: github.com/salesforce/BLIP, vit.py and med.py. Projections, queues and momentum copies are left unread.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel
from transformers.activations import ACT2FN
from transformers.utils import logging

from ..types import DirectAlignError
from .published import Shapes, check_tensors, read_shapes, read_weights
from .scoring_heads import linear_layers

KIND = "BLIP of ImageReward"
VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
UNUSED = (f"{TEXT}embeddings.position_ids",)
HEAD_WIDTH = 64
MED_CONFIG = "med_config.json"
STEMS = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding": "patch_embed.proj",
    "post_layernorm": "norm",
}
BLOCK = {"self_attn.qkv": "attn.qkv", "self_attn.projection": "attn.proj", "layer_norm1": "norm1", "layer_norm2": "norm2"}
Tokens = Float[Tensor, "b n d"]


@dataclass(frozen=True)
class Described:
    """The two encoders of a file, its head on the meta device, and of each of the three how the file calls their tensors, by our names."""

    vision: BlipVisionConfig
    text: BlipTextConfig
    head: nn.Module
    names: tuple[dict[str, str], dict[str, str], dict[str, str]]


class Blip(nn.Module):
    """An image encoder, a text encoder that attends to its tokens, and a head on the first text token."""

    def __init__(self, vision: BlipVisionModel, text: BlipTextModel, head: nn.Module) -> None:
        super().__init__()
        self.vision, self.text, self.head = vision, text, head

    def see(self, pixels: Float[Tensor, "b 3 h w"]) -> Tokens:
        """Image tokens (b, n, d): the class token and the patches, normalised."""
        return self.vision(pixel_values=pixels).last_hidden_state

    def forward(self, seen: Tokens, ids: Tensor, mask: Tensor) -> Float[Tensor, " b"]:
        """The head's number for image tokens and as many texts: ids and mask (b, l)."""
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        return self.head(read[:, 0])[:, 0]


def load(file: Path, key: str) -> Blip:
    """The model of a file in the original layout, float32, on the CPU; errors as `describe`."""
    weights = _used(read_weights(file, f"{key}.path"))
    found = _described({name: tuple(tensor.shape) for name, tensor in weights.items()}, file, key)
    vision, text, head = ({name: weights[source] for name, source in names.items()} for names in found.names)
    filled: Any = found.head.to_empty(device="cpu").float()
    filled.load_state_dict(head)
    logging.disable_progress_bar()
    seeing: Any = BlipVisionModel.from_pretrained(None, config=found.vision, state_dict=vision, dtype=torch.float32)
    reading: Any = BlipTextModel.from_pretrained(None, config=found.text, state_dict=text, dtype=torch.float32, add_pooling_layer=False)
    return Blip(seeing, reading, filled)


def describe(file: Path, key: str) -> Described:
    """What a file holds, without reading the numbers.

    Raises DirectAlignError, which blames the recipe's `key` and names the file: cut short, pickled objects, another architecture, a tensor
    that is missing, unknown or misshapen, a med_config.json that belongs to another model.
    """
    return _described(_used(read_shapes(file, f"{key}.path")), file, key)


def _used(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith((VISION, TEXT, HEAD))}


def _described(shapes: Shapes, file: Path, key: str) -> Described:
    sizes = Sizes(shapes, file, f"{key}.path")
    vision, text = _vision_config(sizes), _text_config(sizes)
    with torch.device("meta"):
        parts = BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False), linear_layers("mlp.layers", (0, 2, 4, 6, 7), text.hidden_size, shapes)
    held = [{name: tuple(tensor.shape) for name, tensor in part.state_dict().items()} for part in parts]
    names = {name: VISION + _source(name) for name in held[0]}, {name: TEXT + name for name in held[1]}, {name: name for name in held[2]}
    wanted = {called[name]: shape for called, part in zip(names, held, strict=True) for name, shape in part.items()}
    check_tensors(wanted, shapes, file, f"{key}.path", KIND, UNUSED)
    return Described(vision, text, parts[2], names)


class Sizes:
    """Shapes of a file, asked by name; a tensor that is missing or of another rank is an error that names it."""

    def __init__(self, shapes: Shapes, file: Path, key: str) -> None:
        self.shapes, self.file, self.key = shapes, file, key

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of one tensor."""
        found = self.shapes.get(name)
        if found is None or len(found) != rank:
            complaint = "lacks" if found is None else "has in another shape"
            raise self.refused(f"{complaint} {name}; it must be the checkpoint of a {KIND}")
        return tuple(found)

    def layers(self, before: str) -> int:
        """One more than the highest number after `before`, 1 at least."""
        numbers = [re.match(r"\d+", name.removeprefix(before)) for name in self.shapes if name.startswith(before)]
        return 1 + max((int(number[0]) for number in numbers if number), default=0)

    def heads(self, width: int, name: str) -> int:
        """How many heads share `width` numbers."""
        if width % HEAD_WIDTH:
            raise self.refused(f"{name} is {width} wide, no multiple of the {HEAD_WIDTH} of a BLIP's heads; it must be the checkpoint of a {KIND}")
        return width // HEAD_WIDTH

    def refused(self, why: str) -> DirectAlignError:
        """An error about this file."""
        return DirectAlignError(f"{self.key}: {self.file}: {why}")


def _vision_config(sizes: Sizes) -> BlipVisionConfig:
    width, _, patch, _ = sizes.of(f"{VISION}patch_embed.proj.weight", 4)
    patches = sizes.of(f"{VISION}pos_embed", 3)[1] - 1
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise sizes.refused(f"{VISION}pos_embed has {patches} patches, which fill no square; it must be the checkpoint of a {KIND}")
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=sizes.of(f"{VISION}blocks.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=sizes.layers(f"{VISION}blocks."),
        num_attention_heads=sizes.heads(width, f"{VISION}patch_embed.proj.weight"),
        image_size=math.isqrt(patches) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def _text_config(sizes: Sizes) -> BlipTextConfig:
    words, width = sizes.of(f"{TEXT}embeddings.word_embeddings.weight", 2)
    shaped: dict[str, Any] = {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": sizes.of(f"{TEXT}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "num_hidden_layers": sizes.layers(f"{TEXT}encoder.layer."),
        "max_position_embeddings": sizes.of(f"{TEXT}embeddings.position_embeddings.weight", 2)[0],
    }
    told = _med_config(sizes, shaped) or {"num_attention_heads": sizes.heads(width, f"{TEXT}embeddings.word_embeddings.weight")}
    seen = sizes.of(f"{VISION}patch_embed.proj.weight", 4)[0]
    published: dict[str, Any] = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    return BlipTextConfig(**published | shaped | told, encoder_hidden_size=seen, is_decoder=True, use_cache=False)


def _med_config(sizes: Sizes, shaped: Mapping[str, int]) -> dict[str, Any]:
    """Heads, activation and epsilon that the file beside the weights tells, if there is one."""
    file = sizes.file.parent / MED_CONFIG
    if not file.exists():
        return {}
    try:
        told = dict(json.loads(file.read_text(encoding="utf-8")))
        heads, activation, eps = int(told["num_attention_heads"]), str(told["hidden_act"]), float(told["layer_norm_eps"])
    except (ValueError, KeyError, TypeError) as error:
        raise DirectAlignError(f"{sizes.key}: {file}: cannot be read ({type(error).__name__}: {error}); copy it again from the original") from error
    other = [name for name, size in shaped.items() if told.get(name, size) != size]
    if other or heads < 1 or shaped["hidden_size"] % heads or activation not in ACT2FN:
        name = other[0] if other else "hidden_act" if activation not in ACT2FN else "num_attention_heads"
        raise DirectAlignError(f"{sizes.key}: {file}: {name} {told[name]} does not fit the weights in {sizes.file.name}; take the two that belong together")
    return {"num_attention_heads": heads, "hidden_act": activation, "layer_norm_eps": eps}


def _source(name: str) -> str:
    """What BLIP's image encoder calls the tensor that transformers calls `name`."""
    stem, _, end = name.rpartition(".")
    if not name.startswith("encoder.layers."):
        return STEMS.get(name) or f"{STEMS[stem]}.{end}"
    number, _, part = stem.removeprefix("encoder.layers.").partition(".")
    return f"blocks.{number}.{BLOCK.get(part, part)}.{end}"
