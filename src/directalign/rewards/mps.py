"""MPS (Multi-dimensional Preference Score, arXiv 2405.14705): a CLIP and a cross model.

score = scale · cos(image token 0 after the cross model, prompt); the authors report
exp(logit_scale) · cos = 100 · cos (scale: 100), about 5 to 20. As in their evaluation, image tokens
attend only to those prompt tokens whose similarity to a word of the condition exceeds 0.3 of the
largest. Their MPS_overall_checkpoint.pth pickles whole objects and is refused: if you trust it,
save its state_dict() as .safetensors. `processor` is the CLIP it was made from,
laion/CLIP-ViT-H-14-laion2B-s32B-b79K (config, tokenizer, image settings).

Each layer of the cross model adds to its input cross-attention to the selected text tokens in
parallel with a gated feed-forward, then self-attention with rotary positions in parallel with
another. Keys and values have one head for all queries. Module names are those of the published
weights (github.com/Kwai-Kolors/MPS, after PaLM's parallel layers, arXiv 2204.02311).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from .. import config
from ..io import hub
from ..types import DirectAlignError, Images, PerSample
from . import common
from . import weights as files

OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, "
    "structure, instance, texture, quantity, attributes, position, number, location, word, things."
)
"""The condition of the published overall score: seven words on aesthetics, eight on detail, then
quantity to location on alignment."""
THRESHOLD = 0.3
MADE_FROM = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PUBLISHED_CROSS = {"dim": 1024, "layers": 4, "dim_head": 64, "heads": 16, "ff_mult": 4}
"""Sizes of the published cross model."""
CACHED_PHRASES = 256
"""Each takes a whole sequence of token features, 0.3 MB at the published size."""
UNUSED = ("position_ids", "rotary_emb.inv_freq")
"""Buffers in published files that follow from the sizes, by suffix."""


class EncodedPrompt(NamedTuple):
    """Token features (l, d) of a prompt, the mask of tokens that the condition selects (l,), and
    the prompt's pooled unit feature (d,)."""

    tokens: Float[Tensor, "l d"]
    selected: Bool[Tensor, " l"]
    whole: Float[Tensor, " d"]


class MpsModel(nn.Module):
    """The CLIP and the cross model, under the names of the published weights."""

    def __init__(self, model: CLIPModel, cross_model: CrossModel) -> None:
        super().__init__()
        self.model, self.cross_model = model, cross_model


class MpsReward(common.BaseReward):
    """A frozen MPS (`interfaces.Reward`); features are image tokens, scores in [-scale, scale]."""

    name = "mps"
    weight_file = (
        "MPS is a single file of weights; give it (.safetensors, .pt, .pth), here or as "
        "owner/name/file"
    )

    def __init__(
        self,
        model: MpsModel,
        tokenizer: PreTrainedTokenizerBase,
        preprocessing: common.Preprocessing,
        scale: float = 1.0,
        condition: str | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocessing, self.scale = tokenizer, preprocessing, scale
        self.condition = condition or OVERALL
        longest = model.model.text_model.config.max_position_embeddings
        self.text_reader = common.TextReader(tokenizer, longest)
        self._prompts = common.PromptCache(self._encode_prompts, CACHED_PHRASES, common.TEXT_BATCH)

    @classmethod
    def _load(cls, settings: config.MpsConfig, device: common.Device, key: str) -> MpsReward:
        file, reader, preprocessing, tokenizer = files.fetch(settings, key)
        weights = files.read_weights(file, f"{key}.path")
        model = _described(files.shapes_of(weights), file, reader, key)
        clip = model.model.config
        files.check_fits(clip, preprocessing, tokenizer, files.processor_key(settings, key))
        model = files.filled(model, weights).to(device)
        common.recompute(model.model.vision_model, settings.gradient_checkpointing)
        return cls(model, tokenizer, preprocessing, settings.scale, settings.condition)

    @classmethod
    def meta(cls, settings: config.MpsConfig, key: str, configs: Any) -> MpsReward:
        file = configs.file(settings.path, f"{key}.path")
        reader = settings.processor or (MADE_FROM if file is None else str(file.parent))
        clip = CLIPConfig.from_dict(configs.read(reader, f"{key}.processor", "clip"))
        sizes = PUBLISHED_CROSS
        if file is not None:
            sizes = sizes_of(files.read_shapes(file, f"{key}.path"), "cross_model.")
        model = MpsModel(CLIPModel(clip), CrossModel(**sizes))
        common.recompute(model.model.vision_model, settings.gradient_checkpointing)
        folder = configs.image_settings(configs.folder(reader, "preprocessor_config.json"))
        side: Any = clip.vision_config
        preprocessing = common.Preprocessing.of(folder, side.image_size)
        return cls(model, configs.tokenizer(), preprocessing, settings.scale, settings.condition)

    @classmethod
    def read_text(
        cls, settings: config.MpsConfig, key: str, online: bool
    ) -> common.TextReader | None:
        return files.text_reader(settings, key, online, 77)

    @classmethod
    def _check(cls, settings: config.MpsConfig, key: str, online: bool) -> None:
        file, reader = files.check_files(settings, key, online, CLIPModel), settings.processor
        if file is not None and reader is not None and not hub.is_hub_id(reader):
            shapes = files.read_shapes(file, f"{key}.path")
            _described(shapes, file, files.locate(reader, f"{key}.processor"), key)

    def encode(self, images: Images) -> ImageTokens:
        """Images (b, 3, h, w) in [0, 1], any size, to projected image tokens (b, n, d)."""
        clip = self.model.model
        pixels = self.preprocessing(images.to(clip.dtype))
        return clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)

    def score(self, features: ImageTokens, prompts: Sequence[str]) -> PerSample:
        """scale · cos, one prompt per image; prompts too long for the text tower are truncated."""
        assert len(prompts) == len(features), f"{len(prompts)} prompts for {len(features)} images"
        encoded = self._prompts.read(prompts)
        tokens, selected, whole = map(torch.stack, zip(*encoded, strict=True))
        image = F.normalize(self.model.cross_model(features, tokens, selected)[:, 0], dim=-1)
        return self.scale * (image * whole).sum(-1)

    @torch.no_grad()
    def _encode_prompts(self, prompts: list[str]) -> list[EncodedPrompt]:
        clip, longest = self.model.model, self.text_reader.length
        options: Any = {"padding": "max_length", "truncation": True, "max_length": longest}
        ids = self.tokenizer([*prompts, self.condition], return_tensors="pt", **options)
        out = clip.text_model(input_ids=ids["input_ids"].to(clip.device))
        tokens = clip.text_projection(out.last_hidden_state)
        whole = clip.text_projection(out.pooler_output)
        similarity = torch.einsum("bld,cd->blc", tokens[:-1], tokens[-1]).amax(-1)
        selected = similarity / similarity.amax(-1, keepdim=True) > THRESHOLD
        return [
            EncodedPrompt(*parts)
            for parts in zip(tokens[:-1], selected, F.normalize(whole[:-1], dim=-1), strict=True)
        ]


def _described(shapes: files.Shapes, file: Path, reader: Path, key: str) -> MpsModel:
    """The model of a file on the meta device: a CLIP as the processor's, and the cross model."""
    if not (reader / "config.json").exists():
        raise DirectAlignError(
            f"{key}.processor: {reader}: config.json is missing; name the CLIP that MPS was made "
            f"from, as {MADE_FROM}"
        )
    clip = files.read_config(CLIPModel, reader, f"{key}.processor")
    with files.sizes_read(file, f"{key}.path", "MPS"), torch.device("meta"):
        model = MpsModel(CLIPModel(clip), CrossModel(**sizes_of(shapes, "cross_model.")))
    found = {name: shape for name, shape in shapes.items() if not name.endswith(UNUSED)}
    wanted = files.shapes_of(model.state_dict())
    files.check_tensors(wanted, found, file, f"{key}.path", "MPS")
    return model


ImageTokens = Float[Tensor, "b n d"]
TextTokens = Float[Tensor, "b l d"]
TokenMask = Bool[Tensor, "b l"]


class CrossModel(nn.Module):
    """`layers` layers of `heads` heads of width `dim_head`, on tokens of width `dim`.

    The feed-forward is `ff_mult` times as wide.
    """

    def __init__(self, dim: int, layers: int, dim_head: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        sizes = (dim, dim_head, heads, ff_mult)
        kinds = (CrossAttention, SelfAttention)
        self.layers: Any = nn.ModuleList(
            nn.ModuleList(Residual(kind(*sizes)) for kind in kinds) for _ in range(layers)
        )

    def forward(self, image: ImageTokens, text: TextTokens, selected: TokenMask) -> ImageTokens:
        """Image tokens after attention to the `selected` text tokens and among themselves."""
        for cross_attention, self_attention in self.layers:
            image = self_attention(cross_attention(image, text, selected))
        return image


def sizes_of(shapes: files.Shapes, prefix: str = "") -> dict[str, int]:
    """Arguments of the `CrossModel` with weights of these shapes; KeyError names a missing one."""
    inner, dim = shapes[f"{prefix}layers.0.0.fn.to_q.weight"]
    dim_head = shapes[f"{prefix}layers.0.0.fn.to_kv.weight"][0] // 2
    layers = files.count_layers(shapes, f"{prefix}layers.")
    sizes = {"dim": dim, "layers": layers, "dim_head": dim_head, "heads": inner // dim_head}
    return sizes | {"ff_mult": shapes[f"{prefix}layers.0.0.fn.ff.2.weight"][1] // dim}


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
    """Image-to-text attention, and a feed-forward on the same normalised input."""

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
        attended = attend(self.to_q(image), keys, values, self.heads, selected)
        return self.to_out(attended) + self.ff(image)


class SelfAttention(nn.Module):
    """Self-attention with rotary positions and a feed-forward, from one fused projection."""

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
        by_head = queries.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        queries = rotated(by_head).transpose(1, 2).flatten(2)
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
    where: Any = {"device": x.device, "dtype": torch.float32}
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, **where) / width)
    angles = torch.outer(torch.arange(count, **where), frequencies).repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)
