"""MPS (Multi-dimensional Preference Score, arXiv 2405.14705): a CLIP whose image tokens read the prompt under a condition.

score = scale · cos(image token 0 after `mps_cross`, prompt); the authors print exp(logit_scale) · cos, which is 100 · cos (scale: 100), about
5 to 20. Of the prompt's tokens only those are read whose similarity to a word of the condition exceeds 0.3 of the largest, as in the
authors' evaluation. Their MPS_overall_checkpoint.pth pickles whole objects and is refused: where you trust it, save its state_dict()
as .safetensors. `processor` is the CLIP that it was made from, laion/CLIP-ViT-H-14-laion2B-s32B-b79K: config, tokenizer, image settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .. import config, hub
from ..types import DirectAlignError, Images, PerSample
from . import folders
from .mps_cross import CrossModel, ImageTokens, sizes_of
from .phrases import AT_ONCE, Phrases
from .preprocessing import Preprocessing
from .published import check_tensors, is_weight_file, locate, read_shapes, read_weights
from .recomputing import recompute

OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, texture, quantity, "
    "attributes, position, number, location, word, things."
)
"""The condition of the published overall score. Its first seven words ask for aesthetics, the next eight for detail, quantity to location for alignment."""
THRESHOLD = 0.3
MADE_FROM = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CACHED_PHRASES = 256
"""Each takes a whole sequence of token features, 0.3 MB at the published size."""
UNUSED = ("position_ids", "rotary_emb.inv_freq")
"""What files hold beside the weights, by the end of its name: it follows from the sizes."""


class Read(NamedTuple):
    """A phrase: features of its tokens (l, d), which of them the condition lets through (l,), its unit feature as a whole (d,)."""

    tokens: Float[Tensor, "l d"]
    heard: Bool[Tensor, " l"]
    whole: Float[Tensor, " d"]


class MpsModel(nn.Module):
    """The CLIP and the cross model, under the names of the published weights."""

    def __init__(self, model: CLIPModel, cross_model: CrossModel) -> None:
        super().__init__()
        self.model, self.cross_model = model, cross_model


class MpsReward:
    """A frozen MPS (`interfaces.Reward`); features are image tokens, scores lie in [-scale, scale]."""

    name = "mps"
    reads_prompt = True
    differentiable = True

    def __init__(
        self, model: MpsModel, tokenizer: PreTrainedTokenizerBase, preprocessing: Preprocessing, scale: float = 1.0, condition: str | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocessing, self.scale = tokenizer, preprocessing, scale
        self.condition = condition or OVERALL
        self._phrases = Phrases(self._read, CACHED_PHRASES, AT_ONCE)

    def encode(self, images: Images) -> ImageTokens:
        """Images (b, 3, h, w) in [0, 1], any size, to projected image tokens (b, n, d)."""
        clip = self.model.model
        return clip.visual_projection(clip.vision_model(pixel_values=self.preprocessing(images.to(clip.dtype))).last_hidden_state)

    def score(self, features: ImageTokens, prompts: Sequence[str]) -> PerSample:
        """scale · cos, one prompt per image; phrases longer than the text tower reads are cut at their end."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        read = self._phrases.read(prompts)
        tokens, heard, whole = (torch.stack([getattr(each, part) for each in read]) for part in Read._fields)
        image = F.normalize(self.model.cross_model(features, tokens, heard)[:, 0], dim=-1)
        return self.scale * (image * whole).sum(-1)

    @torch.no_grad()
    def _read(self, phrases: list[str]) -> list[Read]:
        tokens, whole = self._encode_text([*phrases, self.condition])
        similarity = torch.einsum("bld,cd->blc", tokens[:-1], tokens[-1]).amax(-1)
        heard = similarity / similarity.amax(-1, keepdim=True) > THRESHOLD
        return [Read(*parts) for parts in zip(tokens[:-1], heard, F.normalize(whole[:-1], dim=-1), strict=True)]

    def _encode_text(self, phrases: list[str]) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d"]]:
        clip = self.model.model
        length = clip.text_model.config.max_position_embeddings
        ids = self.tokenizer(phrases, padding="max_length", truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        out = clip.text_model(input_ids=ids.to(clip.device))
        return clip.text_projection(out.last_hidden_state), clip.text_projection(out.pooler_output)


def load(settings: config.Mps, device: torch.device | str = "cpu", key: str = "reward") -> MpsReward:
    """The reward of a recipe's section, float32; `key` is where it stands, for errors."""
    _require_file(settings, key)
    file, reader = folders.fetch(settings, key)
    preprocessing, tokenizer = folders.processor_of(settings, file, reader, key)
    weights = _used(read_weights(file, f"{key}.path"))
    clip, sizes = _described({name: tuple(tensor.shape) for name, tensor in weights.items()}, file, reader, key)
    folders.check_fits(clip, preprocessing, tokenizer, folders.blamed(settings, key))
    model = _filled(clip, sizes, weights).to(device)
    if settings.gradient_checkpointing:
        recompute(model.model.vision_model)
    return MpsReward(model, tokenizer, preprocessing, settings.scale, settings.condition)


def check(settings: config.Mps, key: str = "reward", online: bool = False) -> None:
    """What is wrong with a file is known from its header and the processor's config; a repository's settings are fetched when `online`."""
    _require_file(settings, key)
    file = folders.check(settings, key, online, CLIPModel)
    if file is not None and settings.processor is not None and not hub.is_hub_id(settings.processor):
        _described(_used(read_shapes(file, f"{key}.path")), file, locate(settings.processor, f"{key}.processor", ()), key)


def _require_file(settings: config.Mps, key: str) -> None:
    if not is_weight_file(settings.path):
        raise DirectAlignError(f"{key}.path: {settings.path}: MPS is a single file of weights; give it (.safetensors, .pt, .pth), here or as owner/name/file")


def _used(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(UNUSED)}


def _described(shapes: Mapping[str, tuple[int, ...]], file: Path, reader: Path, key: str) -> tuple[CLIPConfig, dict[str, int]]:
    """The CLIP that the processor's config describes and the sizes of the cross model; every tensor of the file fits them."""
    if not (reader / "config.json").exists():
        raise DirectAlignError(
            f"{key}.processor: {reader}: config.json is missing; name the CLIP that MPS was made from, as laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        )
    try:
        sizes = sizes_of(shapes, "cross_model.")
        clip = CLIPConfig.from_pretrained(reader)
    except (KeyError, ValueError, IndexError, OSError, TypeError) as error:
        raise DirectAlignError(f"{key}.path: {file}: not the weights of an MPS (no {folders.first_line(error)})") from error
    with torch.device("meta"):
        own = MpsModel(CLIPModel(clip), CrossModel(**sizes)).state_dict()
    check_tensors({name: tuple(tensor.shape) for name, tensor in own.items()}, shapes, file, f"{key}.path", "MPS")
    return clip, sizes


def _filled(clip: CLIPConfig, sizes: Mapping[str, int], weights: Mapping[str, Tensor]) -> MpsModel:
    parts = {part: {name.removeprefix(part): tensor for name, tensor in weights.items() if name.startswith(part)} for part in ("model.", "cross_model.")}
    logging.disable_progress_bar()
    towers: Any = CLIPModel.from_pretrained(None, config=clip, state_dict=parts["model."], dtype=torch.float32)
    with torch.device("meta"):
        cross = CrossModel(**sizes)
    cross.load_state_dict({name: tensor.float() for name, tensor in parts["cross_model."].items()}, assign=True)
    return MpsModel(towers, cross)
