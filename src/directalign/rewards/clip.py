"""CLIP, SigLIP and SigLIP 2 of fixed resolution as rewards: score = scale · cos(image, prompt).

`clip` (CLIP, PickScore, HPSv2.1, world:reward; a transformers folder or an open_clip file). Scores as published:
CLIP        cos, about 0.15 to 0.35 for an image and its prompt
HPSv2.1     cos (scale 1); its authors' tables show a mean of 0.28, or 28 = 100 · cos
PickScore   logit_scale · cos = 100 · cos, about 18 to 24; the official SRPO setting divides by 20 (scale: 5)
HPSv2's own package pads an oblong image to a square. This crops the centre, as the official trainers do; squares are equal.

`siglip` (arXiv 2303.15343, 2502.14786; a transformers folder). An image and its prompt score about 0.05 to 0.2, an
unrelated pair about 0. Text is lower-cased and padded to full length without a mask, as in training; images are
resized to a square, not cropped. Not supported: SigLIP 2 NaFlex (`Siglip2Model`) and open_clip files of SigLIP.

Weights are frozen; the gradient reaches the pixels through the preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase, SiglipConfig, SiglipModel

from .. import config
from ..types import DirectAlignError, Images, PerSample
from . import open_clip
from .common import TEXT_BATCH, BaseReward, Preprocessing, PromptCache, recompute
from .projection import check_project, directions_for, project_out
from .soft_prompts import SoftPrompts
from .weights import (
    check_files,
    check_fits,
    check_folder,
    fetch,
    is_weight_file,
    load_model,
    processor_key,
    processor_of,
)

TABLE = "text_model.embeddings.token_embedding.weight"
Features = Float[Tensor, "b d"]


class _DualEncoder(BaseReward):
    """An image tower and a text tower with unit features in one space; scores lie in [-scale, scale]."""

    image_embeddings = True
    supports_soft_prompts = True
    directions: Tensor | None = None
    """Orthonormal rows (m, d) that are projected out of the image features (`reward.project_out`)."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        preprocessing: Preprocessing,
        scale: float = 1.0,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocessing, self.scale = tokenizer, preprocessing, scale
        self.length = model.text_model.config.max_position_embeddings
        self._prompts = PromptCache(self._encode_for_score, batch_size=TEXT_BATCH)
        self.soft_prompts = self._soft_prompts()

    @property
    def image_size(self) -> int:
        return self.model.config.vision_config.image_size

    @property
    def tokens_per_image(self) -> int:
        return (
            self.model.vision_model.embeddings.num_positions
        )  # patches, and the class token of CLIP

    def encode(self, images: Images) -> Features:
        """Images (b, 3, h, w) in [0, 1], any size, to unit features (b, d)."""
        pixels = self.preprocessing(images.to(self.model.dtype))
        features = self._project(self.model.vision_model(pixel_values=pixels).pooler_output)
        return project_out(features, self.directions)

    def score(self, features: Features, prompts: Sequence[str]) -> PerSample:
        """scale · cos, one prompt per image; prompts longer than the text tower reads are truncated."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        return self.scale * (features * torch.stack(self._prompts.read(prompts))).sum(-1)

    def encode_text(self, prompts: Sequence[str]) -> Features:
        raise NotImplementedError

    def _project(self, pooled: Tensor) -> Tensor:
        return pooled

    @torch.no_grad()
    def _encode_for_score(self, prompts: list[str]) -> Tensor:
        return self.encode_text(prompts)

    def _soft_prompts(self, placeholder: str = "x", joint: str = " ") -> SoftPrompts:
        table = self.model.text_model.embeddings.token_embedding
        return SoftPrompts(self.name, table, TABLE, self.tokenizer, self.length, placeholder, joint)


class ClipReward(_DualEncoder):
    """A frozen CLIP (`interfaces.Reward`)."""

    name = "clip"
    finetune_parts = ("text", "lora")

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
        """As a recipe section with these settings (`config.Clip`)."""
        settings = config.ClipConfig(
            path=path,
            scale=scale,
            gradient_checkpointing=gradient_checkpointing,
            processor=processor,
            activation=activation,
        )
        return cls.from_config(settings, device)

    @classmethod
    def from_config(
        cls, settings: config.ClipConfig, device: torch.device | str = "cpu", key: str = "reward"
    ) -> ClipReward:
        """The reward of a recipe section, float32; errors name `key`, the section's place in the recipe."""
        weights, folder = fetch(settings, key)
        if weights.is_dir():
            _refuse_activation(settings, key)
            check_folder(weights, f"{key}.path", CLIPModel)
        preprocessing, tokenizer = processor_of(settings, weights, folder, key)
        if weights.is_dir():
            model = load_model(CLIPModel, weights, f"{key}.path")
        else:
            model = open_clip.load(weights, key, settings.activation)
        width = model.visual_projection.out_features
        return _finish(cls, model, tokenizer, preprocessing, settings, width, device, key)

    @classmethod
    def meta(cls, settings: config.ClipConfig, key: str, configs: Any) -> ClipReward:
        """The reward without weights, for memory estimates; see `BaseReward.meta`."""
        is_file = is_weight_file(settings.path)
        file = configs.file(settings.path, f"{key}.path") if is_file else None
        found = None if file is None else open_clip.describe(file, key, settings.activation)
        if found is None:
            read = configs.published if is_file else configs.read
            found = CLIPConfig.from_dict(read(settings.path, f"{key}.path", "clip"))
        beside = configs.folder(settings.path) if file is None else file.parent
        return _meta(cls, CLIPModel(found), settings, configs, beside)

    @classmethod
    def check(cls, settings: config.ClipConfig, key: str = "reward", online: bool = False) -> None:
        """Check a folder's settings and headers, or an open_clip file's; fetch a repository's settings if `online`."""
        check_project(settings.project_out, key)
        weights = check_files(settings, key, online, CLIPModel)
        if weights is not None and weights.is_file():
            open_clip.describe(weights, key, settings.activation)
        elif not is_weight_file(settings.path):
            _refuse_activation(settings, key)

    def encode_text(self, prompts: Sequence[str], padding: bool | str = True) -> Features:
        """Unit features (b, d) of prompts, not cached, with the gradient to soft prompts; `padding` as the tokenizer takes it."""
        with self.soft_prompts.placed(prompts) as texts:
            tokens = self.tokenizer(
                texts,
                padding=padding,
                truncation=True,
                max_length=self.length,
                return_tensors="pt",
            ).to(self.model.device)
            pooled = self.model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)

    def _project(self, pooled: Tensor) -> Tensor:
        return self.model.visual_projection(pooled)

    @torch.no_grad()
    def _encode_for_score(self, prompts: list[str]) -> Tensor:
        return self.encode_text(prompts, "max_length")


class SiglipReward(_DualEncoder):
    """A frozen SigLIP (`interfaces.Reward`)."""

    name = "siglip"

    @classmethod
    def from_config(
        cls, settings: config.SiglipConfig, device: torch.device | str = "cpu", key: str = "reward"
    ) -> SiglipReward:
        """The reward of a recipe section, float32; errors name `key`, the section's place in the recipe."""
        _refuse_file(settings, key)
        weights, folder = fetch(settings, key)
        check_folder(weights, f"{key}.path", SiglipModel)
        preprocessing, tokenizer = processor_of(settings, weights, folder, key)
        model = load_model(SiglipModel, weights, f"{key}.path")
        width = model.config.vision_config.hidden_size
        return _finish(cls, model, tokenizer, preprocessing, settings, width, device, key)

    @classmethod
    def meta(cls, settings: config.SiglipConfig, key: str, configs: Any) -> SiglipReward:
        """The reward without weights, for memory estimates; see `BaseReward.meta`."""
        found = SiglipConfig.from_dict(configs.read(settings.path, f"{key}.path", "siglip"))
        beside = configs.folder(settings.path, "preprocessor_config.json")
        return _meta(cls, SiglipModel(found), settings, configs, beside)

    @classmethod
    def check(
        cls, settings: config.SiglipConfig, key: str = "reward", online: bool = False
    ) -> None:
        """Check a folder's settings and headers; fetch a repository's settings if `online`."""
        _refuse_file(settings, key)
        check_project(settings.project_out, key)
        check_files(settings, key, online, SiglipModel)

    def encode_text(self, prompts: Sequence[str]) -> Features:
        """Unit features (b, d) of prompts, not cached, with the gradient to soft prompts."""
        with self.soft_prompts.placed(prompts) as texts:
            tokens = self.tokenizer(
                [text.lower() for text in texts],
                padding="max_length",
                truncation=True,
                max_length=self.length,
                return_tensors="pt",
            )
            ids = tokens["input_ids"].to(self.model.device)
            return F.normalize(self.model.text_model(input_ids=ids).pooler_output, dim=-1)

    def _soft_prompts(self, placeholder: str = "", joint: str = "") -> SoftPrompts:
        # A word with its leading space that is one token, in SigLIP's vocabulary and in SigLIP 2's.
        words = (" x", " a", " the")
        ids = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        one = next((word for word, each in zip(words, ids, strict=True) if len(each) == 1), " x")
        return super()._soft_prompts(one, joint)


def _finish(
    cls: Any,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    preprocessing: Preprocessing,
    settings: config.ClipConfig | config.SiglipConfig,
    width: int,
    device: torch.device | str,
    key: str,
) -> Any:
    """Check that the parts fit and build the reward on `device`."""
    check_fits(model.config, preprocessing, tokenizer, processor_key(settings, key))
    model.to(device)
    if settings.gradient_checkpointing:
        recompute(model.vision_model)
    reward = cls(model, tokenizer, preprocessing, settings.scale)
    reward.directions = directions_for(model, width, settings.project_out, key)
    return reward


def _meta(cls: Any, model: Any, settings: Any, configs: Any, beside: Path | None) -> Any:
    """Build the reward without weights; image settings come from `processor`, else from the folder `beside`."""
    if settings.gradient_checkpointing:
        recompute(model.vision_model)
    if settings.processor is not None:
        beside = configs.folder(settings.processor, "preprocessor_config.json")
    folder = configs.image_settings(beside)
    preprocessing = Preprocessing.of(folder, model.config.vision_config.image_size)
    return cls(model, configs.tokenizer(), preprocessing, settings.scale)


def _refuse_activation(settings: config.ClipConfig, key: str) -> None:
    if settings.activation is not None:
        raise DirectAlignError(
            f"{key}.activation: {settings.activation}, but the config.json of {settings.path} sets it: remove activation"
        )


def _refuse_file(settings: config.SiglipConfig, key: str) -> None:
    if is_weight_file(settings.path):
        raise DirectAlignError(
            f"{key}.path: {settings.path}: SigLIP needs a transformers folder or hub id, as google/siglip-so400m-patch14-384"
        )
