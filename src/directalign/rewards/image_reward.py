"""ImageReward (arXiv 2304.05977): a BLIP whose text encoder reads the prompt with cross-attention to the image, and a head.

score = (head - 0.1672) / 1.0333: about zero mean and unit variance over generated images, mostly in -2 to 2, larger is
better. Files: the published ImageReward.pt (zai-org/ImageReward on the hub) and med_config.json beside it; the tokenizer is
BERT's. An image is encoded once for all phrasings; each phrasing runs the text encoder with it, so only token ids are
cached. Known bias: it prefers over-exposed images.

Sizes of the BLIP come from the file's tensors (github.com/salesforce/BLIP, vit.py and med.py); what they do not give is as
published (heads 64 wide, exact gelu, the epsilons) or from med_config.json. Projections, queues and momentum copies are
ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import ACT2FN
from transformers.utils import logging

from .. import config
from ..io import hub
from ..types import DirectAlignError, Images, PerSample
from .common import BaseReward, Preprocessing, PromptCache, recompute
from .soft_prompts import SoftPrompts
from .weights import (
    Shapes,
    check_published,
    check_tensors,
    is_weight_file,
    linear_layers,
    locate,
    on_the_hub,
    plain_layers,
    read_shapes,
    read_weights,
    shapes_of,
)

MEAN, STD = 0.16717362830052426, 1.0333394966054072
LENGTH = 35
"""Tokens that a prompt is padded or truncated to."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENIZER = ("tokenizer*", "vocab.txt", "special_tokens_map.json", "config.json")
VOCABULARIES = ("tokenizer.json", "vocab.txt")
TABLE = "text.embeddings.word_embeddings.weight"
Tokens = Float[Tensor, "b n d"]


class ImageReward(BaseReward):
    """A frozen ImageReward (`interfaces.Reward`)."""

    name = "image_reward"
    supports_soft_prompts = True

    def __init__(self, model: Blip, tokenizer: PreTrainedTokenizerBase, scale: float = 1.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.scale = tokenizer, scale
        side: Any = model.vision.config.image_size
        self.preprocessing = Preprocessing(
            side, (side, side), CLIP_MEAN, CLIP_STD, rounded_centre=True
        )
        self.soft_prompts = SoftPrompts(
            "image_reward", model.text.embeddings.word_embeddings, TABLE, tokenizer, LENGTH
        )
        self._prompts = PromptCache(self._tokenize)

    @classmethod
    def from_config(
        cls,
        settings: config.ImageRewardConfig,
        device: torch.device | str = "cpu",
        key: str = "reward",
    ) -> ImageReward:
        """The reward of a recipe section, float32; errors name `key`, the section's place in the recipe."""
        _require_file(settings.path, key)
        file = locate(settings.path, f"{key}.path", ())
        if hub.is_hub_file(settings.path):
            hub.download(on_the_hub(settings.path)[0], (MED_CONFIG,), f"{key}.path")
        tokenizer = read_tokenizer(
            locate(settings.processor, f"{key}.processor", TOKENIZER), f"{key}.processor"
        )
        model = load_blip(file, key)
        _require_vocabulary(
            tokenizer, model.text.config.vocab_size, f"{key}.processor: {settings.processor}"
        )
        if settings.gradient_checkpointing:
            recompute(model)
        return cls(model.to(device), tokenizer, settings.scale)

    @classmethod
    def meta(cls, settings: config.ImageRewardConfig, key: str, configs: Any) -> ImageReward:
        """The reward without weights, for memory estimates; see `BaseReward.meta`."""
        file = configs.file(settings.path, f"{key}.path")
        if file is not None:
            found = describe_blip(file, key)
            vision, text, head = found.vision, found.text, found.head
        else:
            known = configs.published(settings.path, f"{key}.path", "image_reward")
            vision, text = BlipVisionConfig(**known["vision"]), BlipTextConfig(**known["text"])
            head = plain_layers(text.hidden_size, known["inner"])
        model = Blip(BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False), head)
        if settings.gradient_checkpointing:
            recompute(model)
        return cls(model, configs.tokenizer(), settings.scale)

    @classmethod
    def check(
        cls, settings: config.ImageRewardConfig, key: str = "reward", online: bool = False
    ) -> None:
        """Check names and shapes of the weights, and the tokenizer; fetch a hub tokenizer if `online`."""
        _require_file(settings.path, key)
        check_published(settings.path, f"{key}.path", online)
        found = (
            None
            if hub.is_hub_file(settings.path)
            else describe_blip(locate(settings.path, f"{key}.path", ()), key)
        )
        if online or not hub.is_hub_id(settings.processor):
            tokenizer = read_tokenizer(
                locate(settings.processor, f"{key}.processor", TOKENIZER), f"{key}.processor"
            )
            if found is not None:
                _require_vocabulary(
                    tokenizer, found.text.vocab_size, f"{key}.processor: {settings.processor}"
                )

    @property
    def image_size(self) -> int:
        return self.preprocessing.crop[0]

    @property
    def tokens_per_image(self) -> int:
        return self.model.vision.embeddings.num_positions

    def encode(self, images: Images) -> Tokens:
        """Images (b, 3, h, w) in [0, 1], any size, to image tokens (b, n, d)."""
        return self.model.encode_image(self.preprocessing(images.to(self.model.vision.dtype)))

    def score(self, features: Tokens, prompts: Sequence[str]) -> PerSample:
        """scale · (head - mean) / std, one prompt per image; prompts longer than 35 tokens are truncated."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        with self.soft_prompts.placed(prompts) as texts:
            ids, mask = torch.stack(self._prompts.read(texts), dim=1).to(features.device)
            answered = self.model(features, ids, mask)
        return self.scale * (answered - MEAN) / STD

    def _tokenize(self, texts: list[str]) -> Int[Tensor, "b 2 length"]:
        """Token ids and mask of each text, (b, 2, length) on the CPU."""
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        return torch.stack([tokens["input_ids"], tokens["attention_mask"]], dim=1)


def read_tokenizer(folder: Path, key: str) -> PreTrainedTokenizerBase:
    """BERT's tokenizer with the two tokens that BLIP adds to it; DirectAlignError, which blames `key`, for another kind or a missing file."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise DirectAlignError(
            f"{key}: {folder}: tokenizer.json (or vocab.txt) is missing; give the tokenizer of google-bert/bert-base-uncased"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise DirectAlignError(
            f"{key}: {folder}: its tokenizer cannot be read ({first}); give that of google-bert/bert-base-uncased"
        ) from error
    if tokenizer.cls_token is None or tokenizer.pad_token is None:
        raise DirectAlignError(
            f"{key}: {folder}: no BERT tokenizer (it has no [CLS] or no [PAD]); give that of google-bert/bert-base-uncased"
        )
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    return tokenizer


def _require_file(path: str, key: str) -> None:
    if not is_weight_file(path):
        raise DirectAlignError(
            f"{key}.path: {path}: no file of weights; give ImageReward.pt, here or on the hub (zai-org/ImageReward/ImageReward.pt)"
        )


def _require_vocabulary(tokenizer: PreTrainedTokenizerBase, known: int, named: str) -> None:
    if len(tokenizer) > known:
        raise DirectAlignError(
            f"{named}: has {len(tokenizer)} tokens, two of them BLIP's, and the model knows {known}; give the tokenizer it was trained with"
        )


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
BLOCK = {
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
}
Tokens = Float[Tensor, "b n d"]


@dataclass(frozen=True)
class Described:
    """The two encoders of a file, its head on the meta device, and of each of the three how the file calls their tensors, by our names."""

    vision: BlipVisionConfig
    text: BlipTextConfig
    head: nn.Module
    names: tuple[dict[str, str], dict[str, str], dict[str, str]]


class Blip(nn.Module):
    """Image encoder, text encoder with cross-attention to the image tokens, and a head on the first text token."""

    def __init__(self, vision: BlipVisionModel, text: BlipTextModel, head: nn.Module) -> None:
        super().__init__()
        self.vision, self.text, self.head = vision, text, head

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Tokens:
        """Image tokens (b, n, d): the class token and the patches, normalised."""
        return self.vision(pixel_values=pixels).last_hidden_state

    def forward(self, seen: Tokens, ids: Tensor, mask: Tensor) -> Float[Tensor, " b"]:
        """Head output (b,) for image tokens and one text each: ids and mask (b, l)."""
        read = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen
        ).last_hidden_state
        return self.head(read[:, 0])[:, 0]


def load_blip(file: Path, key: str) -> Blip:
    """The model of a file in the original layout, float32, on the CPU; errors as `describe_blip`."""
    weights = _used(read_weights(file, f"{key}.path"))
    found = _described(shapes_of(weights), file, key)
    vision, text, head = (
        {name: weights[source] for name, source in names.items()} for names in found.names
    )
    filled: Any = found.head.to_empty(device="cpu").float()
    filled.load_state_dict(head)
    logging.disable_progress_bar()
    seeing: Any = BlipVisionModel.from_pretrained(
        None, config=found.vision, state_dict=vision, dtype=torch.float32
    )
    reading: Any = BlipTextModel.from_pretrained(
        None, config=found.text, state_dict=text, dtype=torch.float32, add_pooling_layer=False
    )
    return Blip(seeing, reading, filled)


def describe_blip(file: Path, key: str) -> Described:
    """Config and tensor names of a file, without reading values.

    Raises DirectAlignError, naming `key` and the file: cut short, pickled objects, another architecture, a tensor
    that is missing, unknown or misshapen, a med_config.json that belongs to another model.
    """
    return _described(_used(read_shapes(file, f"{key}.path")), file, key)


def _used(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tensor for name, tensor in tensors.items() if name.startswith((VISION, TEXT, HEAD))
    }


def _described(shapes: Shapes, file: Path, key: str) -> Described:
    sizes = Sizes(shapes, file, f"{key}.path")
    vision, text = _vision_config(sizes), _text_config(sizes)
    with torch.device("meta"):
        parts = (
            BlipVisionModel(vision),
            BlipTextModel(text, add_pooling_layer=False),
            linear_layers("mlp.layers", (0, 2, 4, 6, 7), text.hidden_size, shapes),
        )
    held = [shapes_of(part.state_dict()) for part in parts]
    names = (
        {name: VISION + _source(name) for name in held[0]},
        {name: TEXT + name for name in held[1]},
        {name: name for name in held[2]},
    )
    wanted = {
        called[name]: shape
        for called, part in zip(names, held, strict=True)
        for name, shape in part.items()
    }
    check_tensors(wanted, shapes, file, f"{key}.path", KIND, UNUSED)
    return Described(vision, text, parts[2], names)


class Sizes:
    """Shapes of a file by name; a missing tensor or another rank is an error that names it."""

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
        numbers = [
            re.match(r"\d+", name.removeprefix(before))
            for name in self.shapes
            if name.startswith(before)
        ]
        return 1 + max((int(number[0]) for number in numbers if number), default=0)

    def heads(self, width: int, name: str) -> int:
        """How many heads share `width` numbers."""
        if width % HEAD_WIDTH:
            raise self.refused(
                f"{name} is {width} wide, no multiple of the {HEAD_WIDTH} of a BLIP's heads; it must be the checkpoint of a {KIND}"
            )
        return width // HEAD_WIDTH

    def refused(self, why: str) -> DirectAlignError:
        """An error about this file."""
        return DirectAlignError(f"{self.key}: {self.file}: {why}")


def _vision_config(sizes: Sizes) -> BlipVisionConfig:
    width, _, patch, _ = sizes.of(f"{VISION}patch_embed.proj.weight", 4)
    patches = sizes.of(f"{VISION}pos_embed", 3)[1] - 1
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise sizes.refused(
            f"{VISION}pos_embed has {patches} patches, which fill no square; it must be the checkpoint of a {KIND}"
        )
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
    told = _med_config(sizes, shaped) or {
        "num_attention_heads": sizes.heads(width, f"{TEXT}embeddings.word_embeddings.weight")
    }
    seen = sizes.of(f"{VISION}patch_embed.proj.weight", 4)[0]
    published: dict[str, Any] = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    return BlipTextConfig(
        **published | shaped | told, encoder_hidden_size=seen, is_decoder=True, use_cache=False
    )


def _med_config(sizes: Sizes, shaped: Mapping[str, int]) -> dict[str, Any]:
    """Heads, activation and epsilon from med_config.json beside the weights, if it exists."""
    file = sizes.file.parent / MED_CONFIG
    if not file.exists():
        return {}
    try:
        told = dict(json.loads(file.read_text(encoding="utf-8")))
        heads, activation, eps = (
            int(told["num_attention_heads"]),
            str(told["hidden_act"]),
            float(told["layer_norm_eps"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DirectAlignError(
            f"{sizes.key}: {file}: cannot be read ({type(error).__name__}: {error}); copy it again from the original"
        ) from error
    other = [name for name, size in shaped.items() if told.get(name, size) != size]
    if other or heads < 1 or shaped["hidden_size"] % heads or activation not in ACT2FN:
        name = (
            other[0]
            if other
            else "hidden_act"
            if activation not in ACT2FN
            else "num_attention_heads"
        )
        raise DirectAlignError(
            f"{sizes.key}: {file}: {name} {told[name]} does not fit the weights in {sizes.file.name}; take the two that belong together"
        )
    return {"num_attention_heads": heads, "hidden_act": activation, "layer_norm_eps": eps}


def _source(name: str) -> str:
    """What BLIP's image encoder calls the tensor that transformers calls `name`."""
    stem, _, end = name.rpartition(".")
    if not name.startswith("encoder.layers."):
        return STEMS.get(name) or f"{STEMS[stem]}.{end}"
    number, _, part = stem.removeprefix("encoder.layers.").partition(".")
    return f"blocks.{number}.{BLOCK.get(part, part)}.{end}"
