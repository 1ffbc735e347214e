"""SigLIP and SigLIP 2 of a fixed resolution (arXiv 2303.15343, 2502.14786) as a reward: the cosine of image and prompt.

score = scale · cos(image, prompt). The model was trained to say sigmoid(exp(logit_scale) · cos + logit_bias), which for the published weights
is one half near cos 0.1: an image and its prompt score about 0.05 to 0.2, and a pair that does not belong together about 0. Text is
lower-cased and padded to the full length without a mask, as in training, whatever the tokenizer's settings are; images are squeezed to
a square, not cropped. Left out: SigLIP 2 NaFlex (`Siglip2Model`) and open_clip's files of SigLIP, which are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase, SiglipModel

from .. import config
from ..types import DirectAlignError, Images, PerSample
from . import folders
from .control_tokens import SoftWords
from .phrases import AT_ONCE, Phrases
from .preprocessing import Preprocessing
from .projection import blind, check_project, directions_for
from .published import is_weight_file
from .recomputing import recompute

TABLE = "text_model.embeddings.token_embedding.weight"
Features = Float[Tensor, "b d"]


class SiglipReward:
    """A frozen SigLIP (`interfaces.Reward`); features are unit vectors, scores lie in [-scale, scale]."""

    name = "siglip"
    reads_prompt = True
    differentiable = True

    def __init__(self, model: SiglipModel, tokenizer: PreTrainedTokenizerBase, preprocessing: Preprocessing, scale: float = 1.0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocessing, self.scale = tokenizer, preprocessing, scale
        self.directions: Tensor | None = None
        self._phrases = Phrases(self._encode_text, at_once=AT_ONCE)
        text = model.text_model
        self.length = text.config.max_position_embeddings
        self.soft_words = SoftWords("siglip", text.embeddings.token_embedding, TABLE, tokenizer, self.length, _placeholder(tokenizer), joint="")

    def encode(self, images: Images) -> Features:
        """Images (b, 3, h, w) in [0, 1], any size, to unit features (b, d)."""
        return blind(self.model.vision_model(pixel_values=self.preprocessing(images.to(self.model.dtype))).pooler_output, self.directions)

    def score(self, features: Features, prompts: Sequence[str]) -> PerSample:
        """scale · cos, one prompt per image; phrases longer than the text tower reads are cut at their end."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        return self.scale * (features * torch.stack(self._phrases.read(prompts))).sum(-1)

    @torch.no_grad()
    def _encode_text(self, phrases: list[str]) -> Tensor:
        return self.encode_text(phrases)

    def encode_text(self, phrases: Sequence[str]) -> Features:
        """Unit features (b, d) of phrases, not cached, with the gradient to learned control tokens."""
        with self.soft_words.placed(phrases) as texts:
            lower = [text.lower() for text in texts]
            tokens = self.tokenizer(lower, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
            return F.normalize(self.model.text_model(input_ids=tokens["input_ids"].to(self.model.device)).pooler_output, dim=-1)


def _placeholder(tokenizer: PreTrainedTokenizerBase) -> str:
    """A word with its space that is one token, in SigLIP's vocabulary and in SigLIP 2's."""
    return next((word for word in (" x", " a", " the") if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1), " x")


def load(settings: config.Siglip, device: torch.device | str = "cpu", key: str = "reward") -> SiglipReward:
    """The reward of a recipe's section, float32; `key` is where it stands, for errors."""
    _refuse_file(settings, key)
    folder, reader = folders.fetch(settings, key)
    folders.check_folder(folder, f"{key}.path", SiglipModel)
    preprocessing, tokenizer = folders.processor_of(settings, folder, reader, key)
    model = folders.load_model(SiglipModel, folder, f"{key}.path")
    folders.check_fits(model.config, preprocessing, tokenizer, folders.blamed(settings, key))
    torch.nn.Module.to(model, device)
    if settings.gradient_checkpointing:
        recompute(model.vision_model)
    reward = SiglipReward(model, tokenizer, preprocessing, settings.scale)
    vision: Any = model.config.vision_config
    reward.directions = directions_for(model, vision.hidden_size, settings.project, key)
    return reward


def check(settings: config.Siglip, key: str = "reward", online: bool = False) -> None:
    """What is wrong with a folder is known from its settings and headers; a repository's settings are fetched when `online`."""
    _refuse_file(settings, key)
    check_project(settings.project, key)
    folders.check(settings, key, online, SiglipModel)


def _refuse_file(settings: config.Siglip, key: str) -> None:
    if is_weight_file(settings.path):
        raise DirectAlignError(f"{key}.path: {settings.path}: a SigLIP is read from its transformers folder or hub id, as google/siglip-so400m-patch14-384")
