"""ImageReward (arXiv 2304.05977): a BLIP with cross-attention from text to image, and a head.

score = (head - 0.1672) / 1.0333: about zero mean and unit variance over generated images, mostly in
-2 to 2, larger is better. Files: the published ImageReward.pt (zai-org/ImageReward on the hub) and
med_config.json beside it; the tokenizer is BERT's. An image is encoded once for all phrasings; each
phrasing runs the text encoder with it, so only token ids are cached. Known bias: it prefers
over-exposed images.

Sizes of the BLIP come from the file's tensors (github.com/salesforce/BLIP, vit.py and med.py); what
they do not give is as published (heads 64 wide, exact gelu, the epsilons) or from med_config.json.
Projections, queues and momentum copies are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import ACT2FN

from .. import config
from ..io import hub
from ..io.image_settings import CLIP_MEAN, CLIP_STD
from ..types import DirectAlignError, Images, PerSample
from . import common
from . import weights as files
from .soft_prompts import SoftPrompts

MEAN, STD = 0.16717362830052426, 1.0333394966054072
LENGTH = 35
"""Tokens that a prompt is padded or truncated to."""
TOKENIZER = ("tokenizer*", "vocab.txt", "special_tokens_map.json", "config.json")
TABLE = "text.embeddings.word_embeddings.weight"
Tokens = Float[Tensor, "b n d"]


class ImageReward(common.BaseReward):
    """A frozen ImageReward (`interfaces.Reward`)."""

    name = "image_reward"
    supports_soft_prompts = True
    weight_file = (
        "no file of weights; give ImageReward.pt, here or on the hub (zai-org/ImageReward/"
        "ImageReward.pt)"
    )

    def __init__(self, model: Blip, tokenizer: PreTrainedTokenizerBase, scale: float = 1.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.scale = tokenizer, scale
        side: Any = model.vision.config.image_size
        self.preprocessing = common.Preprocessing(
            side, (side, side), CLIP_MEAN, CLIP_STD, rounded_centre=True
        )
        table = model.text.embeddings.word_embeddings
        self.soft_prompts = SoftPrompts("image_reward", table, TABLE, tokenizer, LENGTH)
        self.text_reader = common.TextReader(tokenizer, LENGTH)
        self._prompts = common.PromptCache(self._tokenize)

    @classmethod
    def _load(
        cls, settings: config.ImageRewardConfig, device: common.Device, key: str
    ) -> ImageReward:
        file = files.locate(settings.path, f"{key}.path", (MED_CONFIG,))
        model = load_blip(file, key)
        tokenizer = _read_tokenizer(settings, key, model)
        common.recompute(model, settings.gradient_checkpointing)
        return cls(model.to(device), tokenizer, settings.scale)

    @classmethod
    def meta(cls, settings: config.ImageRewardConfig, key: str, configs: Any) -> ImageReward:
        file = configs.file(settings.path, f"{key}.path")
        if file is not None:
            model = describe_blip(files.read_shapes(file, f"{key}.path"), file, key)
        else:
            known = configs.published(settings.path, f"{key}.path", "image_reward")
            vision, text = BlipVisionConfig(**known["vision"]), BlipTextConfig(**known["text"])
            model = Blip(vision, text, files.plain_layers(text.hidden_size, known["inner"]))
        common.recompute(model, settings.gradient_checkpointing)
        return cls(model, configs.tokenizer(), settings.scale)

    @classmethod
    def _check(cls, settings: config.ImageRewardConfig, key: str, online: bool) -> None:
        model, file = None, files.check_published(settings.path, f"{key}.path", online)
        if file is not None:
            model = describe_blip(files.read_shapes(file, f"{key}.path"), file, key)
        if online or not hub.is_hub_id(settings.processor):
            _read_tokenizer(settings, key, model)

    @classmethod
    def read_text(
        cls, settings: config.ImageRewardConfig, key: str, online: bool
    ) -> common.TextReader | None:
        local = online or not hub.is_hub_id(settings.processor)
        return common.TextReader(_read_tokenizer(settings, key), LENGTH) if local else None

    def encode(self, images: Images) -> Tokens:
        """Images (b, 3, h, w) in [0, 1], any size, to image tokens (b, n, d)."""
        return self.model.encode_image(self.preprocessing(images.to(self.model.vision.dtype)))

    def score(self, features: Tokens, prompts: Sequence[str]) -> PerSample:
        """scale · (head - mean) / std, one prompt per image; prompts are cut at 35 tokens."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        with self.soft_prompts.placed(prompts) as texts:
            ids, mask = torch.stack(self._prompts.read(texts), dim=1).to(features.device)
            output = self.model(features, ids, mask)
        return self.scale * (output - MEAN) / STD

    def _tokenize(self, texts: list[str]) -> Int[Tensor, "b 2 length"]:
        """Token ids and mask of each text, (b, 2, length) on the CPU."""
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        return torch.stack([tokens["input_ids"], tokens["attention_mask"]], dim=1)


def _read_tokenizer(
    settings: config.ImageRewardConfig, key: str, model: Blip | None = None
) -> PreTrainedTokenizerBase:
    """BERT's tokenizer with the two tokens that BLIP adds to it; the `model` must know them all."""
    folder = files.locate(settings.processor, f"{key}.processor", TOKENIZER)
    tokenizer = files.read_tokenizer(folder, f"{key}.processor")
    if tokenizer.cls_token is None or tokenizer.pad_token is None:
        raise DirectAlignError(
            f"{key}.processor: {folder}: no BERT tokenizer (it has no [CLS] or no [PAD]); give "
            "that of google-bert/bert-base-uncased"
        )
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    known = len(tokenizer) if model is None else model.text.config.vocab_size
    if len(tokenizer) > known:
        raise DirectAlignError(
            f"{key}.processor: {settings.processor}: has {len(tokenizer)} tokens, two of them "
            f"BLIP's, and the model knows {known}; give the tokenizer it was trained with"
        )
    return tokenizer


KIND = "BLIP of ImageReward"
VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
EMBEDDING = f"{TEXT}embeddings.word_embeddings.weight"
PATCHES = f"{VISION}patch_embed.proj.weight"
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


class TextEncoder(BlipTextModel):
    """BLIP's text encoder without the pooling layer, which ImageReward does not have."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__(config, add_pooling_layer=False)


class Blip(nn.Module):
    """Image encoder, text encoder with cross-attention, and a head on the first text token."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig, head: nn.Module) -> None:
        super().__init__()
        self.vision, self.text, self.head = BlipVisionModel(vision), TextEncoder(text), head

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Tokens:
        """Image tokens (b, n, d): the class token and the patches, normalised."""
        return self.vision(pixel_values=pixels).last_hidden_state

    def forward(self, image: Tokens, ids: Tensor, mask: Tensor) -> Float[Tensor, " b"]:
        """Head output (b,) for image tokens and one text each: ids and mask (b, l)."""
        hidden = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=image
        ).last_hidden_state
        return self.head(hidden[:, 0])[:, 0]


def load_blip(file: Path, key: str) -> Blip:
    """The model of an original file, float32, on the CPU; raises as `describe_blip`."""
    weights = files.read_weights(file, f"{key}.path")
    model = describe_blip(files.shapes_of(weights), file, key)
    return files.filled(model, {name: weights[_source(name)] for name in model.state_dict()})


def describe_blip(found: files.Shapes, file: Path, key: str) -> Blip:
    """The model of a file by its tensors' shapes, on the meta device.

    Raises DirectAlignError, naming `key` and the file: another architecture, a tensor that is
    missing, unknown or misshapen, a med_config.json that belongs to another model.
    """
    shapes = {name: each for name, each in found.items() if name.startswith((VISION, TEXT, HEAD))}
    with files.sizes_read(file, f"{key}.path", KIND), torch.device("meta"):
        vision, text = _vision_config(shapes), _text_config(shapes, file, f"{key}.path")
        head = files.linear_layers("mlp.layers", (0, 2, 4, 6, 7), text.hidden_size, shapes)
        model = Blip(vision, text, head)
    own = files.shapes_of(model.state_dict())
    wanted = {_source(name): shape for name, shape in own.items()}
    files.check_tensors(wanted, shapes, file, f"{key}.path", KIND, UNUSED)
    return model


def _vision_config(shapes: files.Shapes) -> BlipVisionConfig:
    width, _, patch, _ = files.sized(shapes, PATCHES, 4)
    patches = files.sized(shapes, f"{VISION}pos_embed", 3)[1] - 1
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise ValueError(f"{VISION}pos_embed has {patches} patches, which fill no square")
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=files.sized(shapes, f"{VISION}blocks.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=files.count_layers(shapes, f"{VISION}blocks."),
        num_attention_heads=_heads(width, PATCHES),
        image_size=math.isqrt(patches) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def _text_config(shapes: files.Shapes, file: Path, key: str) -> BlipTextConfig:
    vocabulary, width = files.sized(shapes, EMBEDDING, 2)
    inner = f"{TEXT}encoder.layer.0.intermediate.dense.weight"
    places = f"{TEXT}embeddings.position_embeddings.weight"
    shaped: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": files.sized(shapes, inner, 2)[0],
        "num_hidden_layers": files.count_layers(shapes, f"{TEXT}encoder.layer."),
        "max_position_embeddings": files.sized(shapes, places, 2)[0],
    }
    given = _med_config(file, key, shaped) or {"num_attention_heads": _heads(width, EMBEDDING)}
    published: dict[str, Any] = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    return BlipTextConfig(
        **published | shaped | given,
        encoder_hidden_size=shapes[PATCHES][0],
        is_decoder=True,
        use_cache=False,
    )


def _heads(width: int, name: str) -> int:
    """Number of attention heads in a layer of `width`."""
    if width % HEAD_WIDTH:
        raise ValueError(
            f"{name} is {width} wide, no multiple of the {HEAD_WIDTH} of a BLIP's heads"
        )
    return width // HEAD_WIDTH


def _med_config(weights: Path, key: str, shaped: Mapping[str, int]) -> dict[str, Any]:
    """Heads, activation and epsilon from med_config.json beside the weights, if it exists."""
    file = weights.parent / MED_CONFIG
    if not file.exists():
        return {}
    read = common.read_json(file, key)
    try:
        heads, activation = int(read["num_attention_heads"]), str(read["hidden_act"])
        eps = float(read["layer_norm_eps"])
    except (ValueError, KeyError, TypeError) as error:
        raise DirectAlignError(
            f"{key}: {file}: cannot be read ({type(error).__name__}: {error}); copy it again "
            "from the original"
        ) from error
    wrong = [name for name, size in shaped.items() if read.get(name, size) != size]
    if activation not in ACT2FN:
        wrong.append("hidden_act")
    if heads < 1 or shaped["hidden_size"] % heads:
        wrong.append("num_attention_heads")
    if wrong:
        raise DirectAlignError(
            f"{key}: {file}: {wrong[0]} {read[wrong[0]]} does not fit the weights in "
            f"{weights.name}; take two of one checkpoint"
        )
    return {"num_attention_heads": heads, "hidden_act": activation, "layer_norm_eps": eps}


def _source(name: str) -> str:
    """The name in an original file of the tensor of a `Blip` called `name`."""
    tower, _, own = name.partition(".")
    if tower != "vision":
        return own if tower == "head" else TEXT + own
    stem, _, end = own.rpartition(".")
    if not own.startswith("encoder.layers."):
        return VISION + (STEMS.get(own) or f"{STEMS[stem]}.{end}")
    number, _, part = stem.removeprefix("encoder.layers.").partition(".")
    return f"{VISION}blocks.{number}.{BLOCK.get(part, part)}.{end}"
