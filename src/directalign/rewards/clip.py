"""CLIP, AltCLIP, SigLIP, SigLIP 2 of fixed resolution: score = scale · cos(image, prompt).

`clip` (CLIP, PickScore, HPSv2.1, world:reward; a transformers folder or an open_clip file). Scores
as published:
CLIP        cos, about 0.15 to 0.35 for an image and its prompt
HPSv2.1     cos (scale 1); its authors' tables show a mean of 0.28, or 28 = 100 · cos
PickScore   logit_scale · cos = 100 · cos, about 18 to 24; official SRPO divides by 20 (scale: 5)
Prompts are cleaned as OpenAI's and open_clip's tokenizers do (`clean_text`), except for PickScore,
which was made with transformers' tokenizer as it is. HPSv2's own package pads an oblong image to a
square. This crops the centre, as the official trainers do; square images give equal scores.

`siglip` (arXiv 2303.15343, 2502.14786; a transformers folder). An image and its prompt score about
0.05 to 0.2, an unrelated pair about 0. Text is lower-cased and padded to full length without a
mask, as in training; images are resized to a square, not cropped. Not supported: SigLIP 2 NaFlex
(`Siglip2Model`) and open_clip files of SigLIP.

`altclip` (arXiv 2211.06679; a transformers folder). A CLIP with an XLM-R as its text tower, which
reads many languages; 77 tokens of a prompt as it is, as in the released code (FlagAI,
examples/AltCLIP/altclip_inference.py).

Weights are frozen; the gradient reaches the pixels through the preprocessing.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ftfy
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AltCLIPModel, CLIPConfig, CLIPModel, PreTrainedTokenizerBase, SiglipModel

from .. import config
from ..types import DirectAlignError, Images, Latents, PerSample
from . import common, open_clip
from . import weights as files
from .projection import check_project, directions_for, project_out
from .soft_prompts import SoftPrompts

Features = Float[Tensor, "b d"]


def clean_text(text: str) -> str:
    """What OpenAI's CLIP and open_clip (github.com/mlfoundations/open_clip, tokenizer.py) do to a
    text before they tokenise it: mended Unicode, no HTML entities, single spaces, lower case.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


class _DualEncoder(common.BaseReward):
    """Image tower and text tower with unit features in one space; scores in [-scale, scale]."""

    image_embeddings = True
    supports_soft_prompts = True
    model_class: Any
    example: str
    """A transformers folder of its makers."""
    table = "text_model.embeddings.token_embedding"
    padding: bool | str = "max_length"
    usual_cleaning: Callable[[str], str]
    """What is done to a text before it is tokenised."""
    directions: Tensor | None = None
    """Orthonormal rows (m, d) that are projected out of the image features (`project_out`)."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        preprocessing: Callable[[Tensor], Tensor],
        scale: float = 1.0,
        clean: Callable[[str], str] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocessing, self.scale = tokenizer, preprocessing, scale
        self.length = self._length(model.text_model.config.max_position_embeddings)
        self.clean = clean or self.usual_cleaning
        self.text_reader = common.TextReader(tokenizer, self.length, self.clean)
        self._prompts = common.PromptCache(self._encode_for_score, batch_size=common.TEXT_BATCH)
        table, name = self.model.get_submodule(self.table), f"{self.table}.weight"
        self.soft_prompts = SoftPrompts(
            self.name, table, name, tokenizer, self.length, self.clean, *self._placeholder()
        )

    @classmethod
    def _load(cls, settings: Any, device: common.Device, key: str) -> Any:
        cls._check_kind(settings, key)
        weights, _, preprocessing, tokenizer = files.fetch(settings, key)
        model: Any
        if weights.is_dir():
            files.check_folder(weights, f"{key}.path", cls.model_class)
            model = files.load_model(cls.model_class, weights, f"{key}.path")
        else:
            model = open_clip.load(weights, key, settings.activation)
        files.check_fits(model.config, preprocessing, tokenizer, files.processor_key(settings, key))
        model.to(device)
        common.recompute(model.vision_model, settings.gradient_checkpointing)
        cleaning = cls._cleaning(settings)
        reward = cls(model, tokenizer, preprocessing, settings.scale, cleaning)
        reward.directions = directions_for(model, settings.project_out, key)
        return reward

    @classmethod
    def _check(cls, settings: Any, key: str, online: bool) -> None:
        cls._check_kind(settings, key)
        check_project(settings.project_out, key)
        weights = files.check_files(settings, key, online, cls.model_class)
        if weights is not None and weights.is_file():
            open_clip.describe(weights, key, settings.activation)

    @classmethod
    def _check_kind(cls, settings: Any, key: str) -> None:
        if common.is_weight_file(settings.path):
            raise DirectAlignError(
                f"{key}.path: {settings.path}: {cls.model_class.__name__} needs a transformers "
                f"folder or hub id, as {cls.example}"
            )

    @classmethod
    def meta(cls, settings: Any, key: str, configs: Any) -> Any:
        kind = cls.model_class.config_class
        found = kind.from_dict(configs.read(settings.path, f"{key}.path", kind.model_type))
        beside = configs.folder(settings.path, "preprocessor_config.json")
        return cls._meta(found, settings, configs, beside)

    @classmethod
    def _meta(cls, found: Any, settings: Any, configs: Any, beside: Path | None) -> Any:
        """Without weights; image settings are from `processor`, else from the folder `beside`."""
        model = cls.model_class(found)
        common.recompute(model.vision_model, settings.gradient_checkpointing)
        if settings.processor is not None:
            beside = configs.folder(settings.processor, "preprocessor_config.json")
        side = model.config.vision_config.image_size
        preprocessing = common.Preprocessing.of(configs.image_settings(beside), side)
        return cls(model, configs.tokenizer(), preprocessing, settings.scale)

    def encode(self, images: Images | Latents) -> Features:
        """What it sees, images (b, 3, h, w) in [0, 1] of any size, to unit features (b, d)."""
        pixels = self.preprocessing(images.to(self.model.dtype))
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        project = getattr(self.model, "visual_projection", nn.Identity())  # a SigLIP has none
        return project_out(project(pooled), self.directions)

    def score(self, features: Features, prompts: Sequence[str]) -> PerSample:
        """scale · cos, one prompt per image; prompts too long for the text tower are truncated."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        return self.scale * (features * torch.stack(self._prompts.read(prompts))).sum(-1)

    @classmethod
    def read_text(cls, settings: Any, key: str, online: bool) -> common.TextReader | None:
        longest = cls.model_class.config_class.sub_configs["text_config"]().max_position_embeddings
        reader = files.text_reader(settings, key, online, longest, cls._cleaning(settings))
        return reader and replace(reader, length=cls._length(reader.length))

    @classmethod
    def _length(cls, positions: int) -> int:
        """Tokens that a text tower with so many positions reads."""
        return positions

    @classmethod
    def _cleaning(cls, settings: Any) -> Callable[[str], str]:
        del settings
        return cls.usual_cleaning

    @torch.no_grad()
    def _encode_for_score(self, prompts: list[str]) -> Tensor:
        return self.encode_text(prompts, "max_length")

    def encode_text(self, prompts: Sequence[str], padding: str | None = None) -> Features:
        """Unit features (b, d) of prompts, not cached, with the gradient to soft prompts.

        `padding` is that of the tokenizer, None for the usual one.
        """
        padded = padding or self.padding
        options: Any = {"padding": padded, "truncation": True, "max_length": self.length}
        with self.soft_prompts.placed(prompts) as texts:
            tokens = self.tokenizer(texts, return_tensors="pt", **options).to(self.model.device)
            return F.normalize(self._pooled_text(tokens), dim=-1)

    def _pooled_text(self, tokens: Any) -> Tensor:
        return self.model.text_model(tokens["input_ids"]).pooler_output

    def _placeholder(self) -> tuple[str, str]:
        """A word that is one token, and what separates two of them."""
        return "x", " "


class ClipReward(_DualEncoder):
    """A frozen CLIP (`interfaces.Reward`)."""

    name = "clip"
    model_class = CLIPModel
    padding = True
    usual_cleaning = staticmethod(clean_text)

    @classmethod
    def load(cls, path: str, device: common.Device = "cpu", **settings: Any) -> ClipReward:
        """As a recipe section with this path and other settings of `config.ClipConfig`."""
        return cls.from_config(config.ClipConfig(path=path, **settings), device)

    @classmethod
    def meta(cls, settings: config.ClipConfig, key: str, configs: Any) -> ClipReward:
        is_file = common.is_weight_file(settings.path)
        file = configs.file(settings.path, f"{key}.path") if is_file else None
        found = None if file is None else open_clip.describe(file, key, settings.activation)
        if found is None:
            read = configs.published if is_file else configs.read
            found = CLIPConfig.from_dict(read(settings.path, f"{key}.path", "clip"))
        beside = configs.folder(settings.path) if file is None else file.parent
        return cls._meta(found, settings, configs, beside)

    def _pooled_text(self, tokens: Any) -> Tensor:
        mask = tokens["attention_mask"]
        pooled = self.model.text_model(tokens["input_ids"], attention_mask=mask).pooler_output
        return self.model.text_projection(pooled)

    @classmethod
    def _cleaning(cls, settings: Any) -> Callable[[str], str]:
        by_name = "pickscore" not in settings.path.lower()
        cleaned = by_name if settings.clean_text is None else settings.clean_text
        return cls.usual_cleaning if cleaned else str

    @classmethod
    def _check_kind(cls, settings: config.ClipConfig, key: str) -> None:
        if settings.activation is not None and not common.is_weight_file(settings.path):
            raise DirectAlignError(
                f"{key}.activation: {settings.activation}, but the config.json of {settings.path} "
                "sets it: remove activation"
            )


class AltClipReward(_DualEncoder):
    """A frozen AltCLIP (`interfaces.Reward`)."""

    name = "altclip"
    model_class = AltCLIPModel
    example = "BAAI/AltCLIP saved with safetensors"
    table = "text_model.roberta.embeddings.word_embeddings"
    padding = True
    usual_cleaning = str
    supports_soft_prompts = False
    _pooled_text = ClipReward._pooled_text

    @classmethod
    def _length(cls, positions: int) -> int:
        return min(77, positions - 2)  # an XLM-R counts from 2


class SiglipReward(_DualEncoder):
    """A frozen SigLIP (`interfaces.Reward`)."""

    name = "siglip"
    model_class = SiglipModel
    example = "google/siglip-so400m-patch14-384"
    usual_cleaning = staticmethod(str.lower)

    def _placeholder(self) -> tuple[str, str]:
        # A word with its leading space that is one token, in SigLIP's vocabulary or in SigLIP 2's.
        words = (" x", " a", " the")
        ids = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        single = (word for word, each in zip(words, ids, strict=True) if len(each) == 1)
        return next(single, " x"), ""
