"""ImageReward (arXiv 2304.05977): a BLIP whose text encoder reads the prompt and looks at the image, and a head on its first token.

score = (head - 0.1672) / 1.0333: about zero mean and unit spread over generated images, most between -2 and 2, larger is better. From the
published ImageReward.pt (zai-org/ImageReward on the hub) and, beside it, med_config.json; the tokenizer is BERT's. An image is encoded
once for all phrasings; each phrasing passes the text encoder with it, so token ids alone can be kept. Known to like over-exposed images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .. import config, hub
from ..types import DirectAlignError, Images, PerSample
from . import blip_layout
from .blip_layout import MED_CONFIG, Blip
from .control_tokens import SoftWords
from .phrases import Phrases
from .preprocessing import Preprocessing
from .published import check_published, is_weight_file, locate, on_the_hub
from .recomputing import recompute

MEAN, STD = 0.16717362830052426, 1.0333394966054072
LENGTH = 35
"""Tokens that a phrase is padded or cut to."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENIZER = ("tokenizer*", "vocab.txt", "special_tokens_map.json", "config.json")
VOCABULARIES = ("tokenizer.json", "vocab.txt")
TABLE = "text.embeddings.word_embeddings.weight"
Tokens = Float[Tensor, "b n d"]


class ImageReward:
    """A frozen ImageReward (`interfaces.Reward`)."""

    name = "image_reward"
    reads_prompt = True
    differentiable = True

    def __init__(self, model: Blip, tokenizer: PreTrainedTokenizerBase, scale: float = 1.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.scale = tokenizer, scale
        side: Any = model.vision.config.image_size
        self.preprocessing = Preprocessing(side, (side, side), CLIP_MEAN, CLIP_STD, rounded_centre=True)
        self.soft_words = SoftWords("image_reward", model.text.embeddings.word_embeddings, TABLE, tokenizer, LENGTH)
        self._phrases = Phrases(self._tokenize)

    def encode(self, images: Images) -> Tokens:
        """Images (b, 3, h, w) in [0, 1], any size, to image tokens (b, n, d)."""
        return self.model.see(self.preprocessing(images.to(self.model.vision.dtype)))

    def score(self, features: Tokens, prompts: Sequence[str]) -> PerSample:
        """scale · (head - mean) / std, one prompt per image; prompts longer than 35 tokens are cut at their end."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        with self.soft_words.placed(prompts) as texts:
            ids, mask = torch.stack(self._phrases.read(texts), dim=1).to(features.device)
            answered = self.model(features, ids, mask)
        return self.scale * (answered - MEAN) / STD

    def _tokenize(self, texts: list[str]) -> Int[Tensor, "b 2 length"]:
        """Of each text its token ids and its mask, (b, 2, length) on the CPU."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        return torch.stack([tokens["input_ids"], tokens["attention_mask"]], dim=1)


def load(settings: config.ImageReward, device: torch.device | str = "cpu", key: str = "reward") -> ImageReward:
    """The reward of a recipe's section, float32; `key` is where it stands, for errors."""
    _require_file(settings.path, key)
    file = locate(settings.path, f"{key}.path", ())
    if hub.is_hub_file(settings.path):
        hub.download(on_the_hub(settings.path)[0], (MED_CONFIG,), f"{key}.path")
    tokenizer = read_tokenizer(locate(settings.processor, f"{key}.processor", TOKENIZER), f"{key}.processor")
    model = blip_layout.load(file, key)
    _require_words(tokenizer, model.text.config.vocab_size, f"{key}.processor: {settings.processor}")
    if settings.gradient_checkpointing:
        recompute(model)
    return ImageReward(model.to(device), tokenizer, settings.scale)


def check(settings: config.ImageReward, key: str = "reward", online: bool = False) -> None:
    """What is wrong with a file of weights is known from names and shapes, with a tokenizer from reading it; `online` fetches that of the hub."""
    _require_file(settings.path, key)
    check_published(settings.path, f"{key}.path", online)
    found = None if hub.is_hub_file(settings.path) else blip_layout.describe(locate(settings.path, f"{key}.path", ()), key)
    if online or not hub.is_hub_id(settings.processor):
        tokenizer = read_tokenizer(locate(settings.processor, f"{key}.processor", TOKENIZER), f"{key}.processor")
        if found is not None:
            _require_words(tokenizer, found.text.vocab_size, f"{key}.processor: {settings.processor}")


def read_tokenizer(folder: Path, key: str) -> PreTrainedTokenizerBase:
    """BERT's tokenizer with the two tokens that BLIP adds to it; DirectAlignError, which blames `key`, for another kind or a missing file."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise DirectAlignError(f"{key}: {folder}: tokenizer.json (or vocab.txt) is missing; give the tokenizer of google-bert/bert-base-uncased")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise DirectAlignError(f"{key}: {folder}: its tokenizer cannot be read ({first}); give that of google-bert/bert-base-uncased") from error
    if tokenizer.cls_token is None or tokenizer.pad_token is None:
        raise DirectAlignError(f"{key}: {folder}: no BERT tokenizer (it has no [CLS] or no [PAD]); give that of google-bert/bert-base-uncased")
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    return tokenizer


def _require_file(path: str, key: str) -> None:
    if not is_weight_file(path):
        raise DirectAlignError(f"{key}.path: {path}: no file of weights; give ImageReward.pt, here or on the hub (zai-org/ImageReward/ImageReward.pt)")


def _require_words(tokenizer: PreTrainedTokenizerBase, known: int, named: str) -> None:
    if len(tokenizer) > known:
        raise DirectAlignError(f"{named}: has {len(tokenizer)} tokens, two of them BLIP's, and the model knows {known}; give the tokenizer it was trained with")
