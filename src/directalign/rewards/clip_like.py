"""Any CLIP as a reward: the cosine of image and prompt (CLIP, PickScore, HPSv2.1, the world's own), from a transformers folder or an open_clip file.

score = scale · cos(image, prompt). Weights are frozen; the gradient runs through the preprocessing to the pixels. Scales as published:
CLIP        cos, about 0.15 to 0.35 for an image and its prompt
HPSv2.1     cos (scale 1); the tables' 0.28 is its mean, and 28 is 100 · cos
PickScore   logit_scale · cos = 100 · cos, about 18 to 24; the official SRPO setting divides that by 20: scale 5
Left out: HPSv2's own package pads an oblong image to a square; this, as the official trainers, cuts its middle (equal on squares).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, PreTrainedTokenizerBase

from .. import config
from ..types import DirectAlignError, Images, PerSample
from . import folders, open_clip
from .control_tokens import SoftWords
from .phrases import AT_ONCE, Phrases
from .preprocessing import Preprocessing
from .projection import blind, check_project, directions_for
from .published import is_weight_file
from .recomputing import recompute

TABLE = "text_model.embeddings.token_embedding.weight"
Features = Float[Tensor, "b d"]


class ClipReward:
    """A frozen CLIP (`interfaces.Reward`); features are unit vectors, scores lie in [-scale, scale]."""

    name = "clip"
    reads_prompt = True
    differentiable = True

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, preprocessing: Preprocessing, scale: float = 1.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocessing, self.scale = tokenizer, preprocessing, scale
        self._phrases = Phrases(self._encode_text, at_once=AT_ONCE)
        self.directions: Tensor | None = None
        text = model.text_model
        self.soft_words = SoftWords("clip", text.embeddings.token_embedding, TABLE, tokenizer, text.config.max_position_embeddings)

    @classmethod
    def load(
        cls,
        path: str,
        scale: float = 1.0,
        device: torch.device | str = "cpu",
        gradient_checkpointing: bool = False,
        processor: str | None = None,
        activation: Literal["gelu", "quick_gelu"] | None = None,
    ) -> ClipReward:
        """As a recipe's section with these settings (`config.Clip`) says."""
        settings = config.Clip(path=path, scale=scale, gradient_checkpointing=gradient_checkpointing, processor=processor, activation=activation)
        return load(settings, device)

    def encode(self, images: Images) -> Features:
        """Images (b, 3, h, w) in [0, 1], any size, to unit features (b, d)."""
        pixels = self.preprocessing(images.to(self.model.dtype))
        return blind(self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output), self.directions)

    def score(self, features: Features, prompts: Sequence[str]) -> PerSample:
        """scale · cos, one prompt per image; phrases longer than the text tower reads are cut at its end."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        return self.scale * (features * torch.stack(self._phrases.read(prompts))).sum(-1)

    @torch.no_grad()
    def _encode_text(self, phrases: list[str]) -> Tensor:
        return self.encode_text(phrases, "max_length")

    def encode_text(self, phrases: Sequence[str], padding: bool | str = True) -> Features:
        """Unit features (b, d) of phrases, not cached, with the gradient to learned control tokens; `padding` as the tokenizer takes it."""
        with self.soft_words.placed(phrases) as texts:
            length = self.model.text_model.config.max_position_embeddings
            tokens = self.tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt").to(self.model.device)
            pooled = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)


def load(settings: config.Clip, device: torch.device | str = "cpu", key: str = "reward") -> ClipReward:
    """The reward of a recipe's section, float32; `key` is where it stands, for errors."""
    weights, reader = folders.fetch(settings, key)
    if weights.is_dir():
        _refuse_activation(settings, key)
        folders.check_folder(weights, f"{key}.path", CLIPModel)
    preprocessing, tokenizer = folders.processor_of(settings, weights, reader, key)
    model = folders.load_model(CLIPModel, weights, f"{key}.path") if weights.is_dir() else open_clip.load(weights, key, settings.activation)
    folders.check_fits(model.config, preprocessing, tokenizer, folders.blamed(settings, key))
    torch.nn.Module.to(model, device)
    if settings.gradient_checkpointing:
        recompute(model.vision_model)
    reward = ClipReward(model, tokenizer, preprocessing, settings.scale)
    reward.directions = directions_for(model, model.visual_projection.out_features, settings.project, key)
    return reward


def check(settings: config.Clip, key: str = "reward", online: bool = False) -> None:
    """What is wrong with a folder or an open_clip file is known from its settings and headers; a repository's settings are fetched when `online`."""
    check_project(settings.project, key)
    weights = folders.check(settings, key, online, CLIPModel)
    if weights is not None and weights.is_file():
        open_clip.describe(weights, key, settings.activation)
    elif not is_weight_file(settings.path):
        _refuse_activation(settings, key)


def _refuse_activation(settings: config.Clip, key: str) -> None:
    if settings.activation is not None:
        raise DirectAlignError(f"{key}.activation: {settings.activation}, but {settings.path} brings its config.json, which says it: leave activation out")
