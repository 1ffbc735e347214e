"""MPS (Multi-dimensional Preference Score, arXiv 2405.14705): a CLIP whose image tokens attend to the prompt under a condition.

score = scale · cos(image token 0 after the cross model, prompt); the authors report exp(logit_scale) · cos = 100 · cos
(scale: 100), about 5 to 20. As in their evaluation, only those prompt tokens are used whose similarity to a word of the
condition exceeds 0.3 of the largest. Their MPS_overall_checkpoint.pth pickles whole objects and is refused: if you trust it,
save its state_dict() as .safetensors. `processor` is the CLIP it was made from, laion/CLIP-ViT-H-14-laion2B-s32B-b79K
(config, tokenizer, image settings).

Each layer of the cross model adds to its input cross-attention to the selected text tokens beside a gated feed-forward,
then self-attention with rotary positions beside another. Keys and values have one head for all queries. Module names are
those of the published weights (github.com/Kwai-Kolors/MPS, after PaLM's parallel layers, arXiv 2204.02311).
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

from .. import config
from ..io import hub
from ..types import DirectAlignError, Images, PerSample
from .common import TEXT_BATCH, BaseReward, Preprocessing, PromptCache, recompute
from .weights import (
    check_files,
    check_fits,
    check_tensors,
    fetch,
    first_line,
    is_weight_file,
    locate,
    processor_key,
    processor_of,
    read_shapes,
    read_weights,
    shapes_of,
)

OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, texture, quantity, "
    "attributes, position, number, location, word, things."
)
"""The condition of the published overall score. Its first seven words ask for aesthetics, the next eight for detail, quantity to location for alignment."""
THRESHOLD = 0.3
MADE_FROM = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PUBLISHED_CROSS = {"dim": 1024, "layers": 4, "dim_head": 64, "heads": 16, "ff_mult": 4}
"""Sizes of the published cross model."""
CACHED_PHRASES = 256
"""Each takes a whole sequence of token features, 0.3 MB at the published size."""
UNUSED = ("position_ids", "rotary_emb.inv_freq")
"""Buffers in published files that follow from the sizes, by suffix."""


class EncodedPrompt(NamedTuple):
    """A prompt: token features (l, d), the mask of tokens that the condition selects (l,), and its pooled unit feature (d,)."""

    tokens: Float[Tensor, "l d"]
    selected: Bool[Tensor, " l"]
    whole: Float[Tensor, " d"]


class MpsModel(nn.Module):
    """The CLIP and the cross model, under the names of the published weights."""

    def __init__(self, model: CLIPModel, cross_model: CrossModel) -> None:
        super().__init__()
        self.model, self.cross_model = model, cross_model


class MpsReward(BaseReward):
    """A frozen MPS (`interfaces.Reward`); features are image tokens, scores lie in [-scale, scale]."""

    name = "mps"

    def __init__(
        self,
        model: MpsModel,
        tokenizer: PreTrainedTokenizerBase,
        preprocessing: Preprocessing,
        scale: float = 1.0,
        condition: str | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocessing, self.scale = tokenizer, preprocessing, scale
        self.condition = condition or OVERALL
        self._prompts = PromptCache(self._read, CACHED_PHRASES, TEXT_BATCH)

    @classmethod
    def from_config(
        cls, settings: config.MpsConfig, device: torch.device | str = "cpu", key: str = "reward"
    ) -> MpsReward:
        """The reward of a recipe section, float32; errors name `key`, the section's place in the recipe."""
        _require_file(settings, key)
        file, reader = fetch(settings, key)
        preprocessing, tokenizer = processor_of(settings, file, reader, key)
        weights = _used(read_weights(file, f"{key}.path"))
        clip, sizes = _described(shapes_of(weights), file, reader, key)
        check_fits(clip, preprocessing, tokenizer, processor_key(settings, key))
        model = _filled(clip, sizes, weights).to(device)
        if settings.gradient_checkpointing:
            recompute(model.model.vision_model)
        return cls(model, tokenizer, preprocessing, settings.scale, settings.condition)

    @classmethod
    def meta(cls, settings: config.MpsConfig, key: str, configs: Any) -> MpsReward:
        """The reward without weights, for memory estimates; see `BaseReward.meta`."""
        file = configs.file(settings.path, f"{key}.path")
        reader = settings.processor or (MADE_FROM if file is None else str(file.parent))
        clip = CLIPConfig.from_dict(configs.read(reader, f"{key}.processor", "clip"))
        sizes = PUBLISHED_CROSS
        if file is not None:
            sizes = sizes_of(read_shapes(file, f"{key}.path"), "cross_model.")
        model = MpsModel(CLIPModel(clip), CrossModel(**sizes))
        if settings.gradient_checkpointing:
            recompute(model.model.vision_model)
        folder = configs.image_settings(configs.folder(reader, "preprocessor_config.json"))
        side: Any = clip.vision_config
        preprocessing = Preprocessing.of(folder, side.image_size)
        return cls(model, configs.tokenizer(), preprocessing, settings.scale, settings.condition)

    @classmethod
    def check(cls, settings: config.MpsConfig, key: str = "reward", online: bool = False) -> None:
        """Check the file's header against the processor's config; fetch a repository's settings if `online`."""
        _require_file(settings, key)
        file = check_files(settings, key, online, CLIPModel)
        if (
            file is not None
            and settings.processor is not None
            and not hub.is_hub_id(settings.processor)
        ):
            _described(
                _used(read_shapes(file, f"{key}.path")),
                file,
                locate(settings.processor, f"{key}.processor", ()),
                key,
            )

    @property
    def image_size(self) -> int:
        return self.preprocessing.crop[0]

    @property
    def tokens_per_image(self) -> int:
        return self.model.model.vision_model.embeddings.num_positions

    def encode(self, images: Images) -> ImageTokens:
        """Images (b, 3, h, w) in [0, 1], any size, to projected image tokens (b, n, d)."""
        clip = self.model.model
        return clip.visual_projection(
            clip.vision_model(
                pixel_values=self.preprocessing(images.to(clip.dtype))
            ).last_hidden_state
        )

    def score(self, features: ImageTokens, prompts: Sequence[str]) -> PerSample:
        """scale · cos, one prompt per image; prompts longer than the text tower reads are truncated."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        read = self._prompts.read(prompts)
        tokens, selected, whole = (
            torch.stack([getattr(each, part) for each in read]) for part in EncodedPrompt._fields
        )
        image = F.normalize(self.model.cross_model(features, tokens, selected)[:, 0], dim=-1)
        return self.scale * (image * whole).sum(-1)

    @torch.no_grad()
    def _read(self, prompts: list[str]) -> list[EncodedPrompt]:
        tokens, whole = self._encode_text([*prompts, self.condition])
        similarity = torch.einsum("bld,cd->blc", tokens[:-1], tokens[-1]).amax(-1)
        selected = similarity / similarity.amax(-1, keepdim=True) > THRESHOLD
        return [
            EncodedPrompt(*parts)
            for parts in zip(tokens[:-1], selected, F.normalize(whole[:-1], dim=-1), strict=True)
        ]

    def _encode_text(
        self, prompts: list[str]
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d"]]:
        clip = self.model.model
        length = clip.text_model.config.max_position_embeddings
        ids = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )["input_ids"]
        out = clip.text_model(input_ids=ids.to(clip.device))
        return clip.text_projection(out.last_hidden_state), clip.text_projection(out.pooler_output)


def _require_file(settings: config.MpsConfig, key: str) -> None:
    if not is_weight_file(settings.path):
        raise DirectAlignError(
            f"{key}.path: {settings.path}: MPS is a single file of weights; give it (.safetensors, .pt, .pth), here or as owner/name/file"
        )


def _used(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(UNUSED)}


def _described(
    shapes: Mapping[str, tuple[int, ...]], file: Path, reader: Path, key: str
) -> tuple[CLIPConfig, dict[str, int]]:
    """The CLIP config of the processor folder and the sizes of the cross model, checked against every tensor of the file."""
    if not (reader / "config.json").exists():
        raise DirectAlignError(
            f"{key}.processor: {reader}: config.json is missing; name the CLIP that MPS was made from, as laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        )
    try:
        sizes = sizes_of(shapes, "cross_model.")
        clip = CLIPConfig.from_pretrained(reader)
    except (KeyError, ValueError, IndexError, OSError, TypeError) as error:
        raise DirectAlignError(
            f"{key}.path: {file}: not the weights of an MPS (no {first_line(error)})"
        ) from error
    with torch.device("meta"):
        own = MpsModel(CLIPModel(clip), CrossModel(**sizes)).state_dict()
    check_tensors(
        shapes_of(own),
        shapes,
        file,
        f"{key}.path",
        "MPS",
    )
    return clip, sizes


def _filled(clip: CLIPConfig, sizes: Mapping[str, int], weights: Mapping[str, Tensor]) -> MpsModel:
    parts = {
        part: {
            name.removeprefix(part): tensor
            for name, tensor in weights.items()
            if name.startswith(part)
        }
        for part in ("model.", "cross_model.")
    }
    logging.disable_progress_bar()
    towers: Any = CLIPModel.from_pretrained(
        None, config=clip, state_dict=parts["model."], dtype=torch.float32
    )
    with torch.device("meta"):
        cross = CrossModel(**sizes)
    cross.load_state_dict(
        {name: tensor.float() for name, tensor in parts["cross_model."].items()}, assign=True
    )
    return MpsModel(towers, cross)


ImageTokens = Float[Tensor, "b n d"]
TextTokens = Float[Tensor, "b l d"]
TokenMask = Bool[Tensor, "b l"]


class CrossModel(nn.Module):
    """`layers` of `heads` heads, each `dim_head` wide, on tokens `dim` wide; `ff_mult` widens the feed-forward."""

    def __init__(self, dim: int, layers: int, dim_head: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        pair = [
            nn.ModuleList(
                [
                    Residual(CrossAttention(dim, dim_head, heads, ff_mult)),
                    Residual(SelfAttention(dim, dim_head, heads, ff_mult)),
                ]
            )
            for _ in range(layers)
        ]
        self.layers: Any = nn.ModuleList(pair)

    def forward(self, image: ImageTokens, text: TextTokens, selected: TokenMask) -> ImageTokens:
        """Image tokens after attention to the `selected` text tokens and among themselves."""
        for cross, own in self.layers:
            image = own(cross(image, text, selected))
        return image


def sizes_of(shapes: Mapping[str, Sequence[int]], prefix: str = "") -> dict[str, int]:
    """The arguments of the `CrossModel` whose weights have these shapes; KeyError or IndexError names what is not there."""
    inner, dim = shapes[f"{prefix}layers.0.0.fn.to_q.weight"]
    dim_head = shapes[f"{prefix}layers.0.0.fn.to_kv.weight"][0] // 2
    layers = {
        name.removeprefix(f"{prefix}layers.").split(".")[0]
        for name in shapes
        if name.startswith(f"{prefix}layers.")
    }
    ff_mult = shapes[f"{prefix}layers.0.0.fn.ff.2.weight"][1] // dim
    return {
        "dim": dim,
        "layers": len(layers),
        "dim_head": dim_head,
        "heads": inner // dim_head,
        "ff_mult": ff_mult,
    }


class Residual(nn.Module):
    """Residual connection around `fn`."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x + self.fn(x, *others)


class Gated(nn.Module):
    """(b, n, 2k) to (b, n, k): the second half, through SiLU, scales the first."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.silu(gate)


class CrossAttention(nn.Module):
    """Attention from image tokens to text tokens, and a feed-forward on the same normalised input."""

    def __init__(self, dim: int, dim_head: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(dim, 2 * ff_mult * dim, bias=False),
            Gated(),
            nn.Linear(ff_mult * dim, dim, bias=False),
        )

    def forward(self, image: ImageTokens, text: TextTokens, selected: TokenMask) -> ImageTokens:
        image = self.norm(image)
        keys, values = self.to_kv(text).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(image), keys, values, self.heads, selected)) + self.ff(
            image
        )


class SelfAttention(nn.Module):
    """Self-attention of image tokens with rotary positions, and a feed-forward, out of one projection."""

    def __init__(self, dim: int, dim_head: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.heads, self.widths = heads, (heads * dim_head, dim_head, dim_head, 2 * ff_mult * dim)
        self.norm = nn.LayerNorm(dim)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff_out = nn.Sequential(Gated(), nn.Linear(ff_mult * dim, dim, bias=False))

    def forward(self, image: ImageTokens) -> ImageTokens:
        queries, keys, values, wide = self.fused_attn_ff_proj(self.norm(image)).split(
            self.widths, dim=-1
        )
        queries = (
            rotated(queries.unflatten(-1, (self.heads, -1)).transpose(1, 2))
            .transpose(1, 2)
            .flatten(2)
        )
        return self.attn_out(attend(queries, rotated(keys), values, self.heads)) + self.ff_out(wide)


def attend(
    queries: Float[Tensor, "b n hd"],
    keys: TextTokens,
    values: TextTokens,
    heads: int,
    selected: TokenMask | None = None,
) -> Float[Tensor, "b n hd"]:
    """Multi-query attention: `heads` heads of queries, one of keys and values."""
    split = queries.unflatten(-1, (heads, -1)).transpose(1, 2)
    mask = None if selected is None else selected[:, None, None, :]
    shared = [part[:, None].expand(-1, heads, -1, -1) for part in (keys, values)]
    return F.scaled_dot_product_attention(split, *shared, attn_mask=mask).transpose(1, 2).flatten(2)


def rotated(x: Float[Tensor, "... n d"]) -> Float[Tensor, "... n d"]:
    """Rotary positions 0, 1, ... (arXiv 2104.09864): entries i and i + d/2 form a pair."""
    count, width = x.shape[-2:]
    speeds = 10_000.0 ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(count, device=x.device, dtype=torch.float32), speeds).repeat(
        1, 2
    )
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos().to(x.dtype) + torch.cat([-second, first], dim=-1) * angles.sin().to(
        x.dtype
    )
