"""MPS's cross model: image tokens read the prompt's tokens, then one another, a few layers deep.

Each layer adds to its input, first, attention from the image to those text tokens that a mask leaves, beside a gated feed-forward; then
attention among image tokens with rotary positions, beside another such feed-forward. Keys and values have one head for all queries.
Module names are those of the published weights (github.com/Kwai-Kolors/MPS, after PaLM's parallel layers, arXiv 2204.02311).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

ImageTokens = Float[Tensor, "b n d"]
TextTokens = Float[Tensor, "b l d"]
Heard = Bool[Tensor, "b l"]


class CrossModel(nn.Module):
    """`layers` of `heads` heads, each `dim_head` wide, on tokens `dim` wide; `ff_mult` widens the feed-forward."""

    def __init__(self, dim: int, layers: int, dim_head: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        pair = [nn.ModuleList([Added(FromText(dim, dim_head, heads, ff_mult)), Added(Among(dim, dim_head, heads, ff_mult))]) for _ in range(layers)]
        self.layers: Any = nn.ModuleList(pair)

    def forward(self, image: ImageTokens, text: TextTokens, heard: Heard) -> ImageTokens:
        """Image tokens that have read the text tokens where `heard`."""
        for from_text, among in self.layers:
            image = among(from_text(image, text, heard))
        return image


def sizes_of(shapes: Mapping[str, Sequence[int]], prefix: str = "") -> dict[str, int]:
    """The arguments of the `CrossModel` whose weights have these shapes; KeyError or IndexError names what is not there."""
    inner, dim = shapes[f"{prefix}layers.0.0.fn.to_q.weight"]
    dim_head = shapes[f"{prefix}layers.0.0.fn.to_kv.weight"][0] // 2
    layers = {name.removeprefix(f"{prefix}layers.").split(".")[0] for name in shapes if name.startswith(f"{prefix}layers.")}
    ff_mult = shapes[f"{prefix}layers.0.0.fn.ff.2.weight"][1] // dim
    return {"dim": dim, "layers": len(layers), "dim_head": dim_head, "heads": inner // dim_head, "ff_mult": ff_mult}


class Added(nn.Module):
    """What `fn` says, on top of its input."""

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


class FromText(nn.Module):
    """Attention from image tokens to text tokens, and a feed-forward on the same normalised input."""

    def __init__(self, dim: int, dim_head: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * ff_mult * dim, bias=False), Gated(), nn.Linear(ff_mult * dim, dim, bias=False))

    def forward(self, image: ImageTokens, text: TextTokens, heard: Heard) -> ImageTokens:
        image = self.norm(image)
        keys, values = self.to_kv(text).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(image), keys, values, self.heads, heard)) + self.ff(image)


class Among(nn.Module):
    """Attention among image tokens with rotary positions, and a feed-forward, out of one projection."""

    def __init__(self, dim: int, dim_head: int, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.heads, self.widths = heads, (heads * dim_head, dim_head, dim_head, 2 * ff_mult * dim)
        self.norm = nn.LayerNorm(dim)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff_out = nn.Sequential(Gated(), nn.Linear(ff_mult * dim, dim, bias=False))

    def forward(self, image: ImageTokens) -> ImageTokens:
        queries, keys, values, wide = self.fused_attn_ff_proj(self.norm(image)).split(self.widths, dim=-1)
        queries = rotated(queries.unflatten(-1, (self.heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
        return self.attn_out(attend(queries, rotated(keys), values, self.heads)) + self.ff_out(wide)


def attend(queries: Float[Tensor, "b n hd"], keys: TextTokens, values: TextTokens, heads: int, heard: Heard | None = None) -> Float[Tensor, "b n hd"]:
    """Many heads of queries over one of keys and values."""
    split = queries.unflatten(-1, (heads, -1)).transpose(1, 2)
    mask = None if heard is None else heard[:, None, None, :]
    shared = [part[:, None].expand(-1, heads, -1, -1) for part in (keys, values)]
    return F.scaled_dot_product_attention(split, *shared, attn_mask=mask).transpose(1, 2).flatten(2)


def rotated(x: Float[Tensor, "... n d"]) -> Float[Tensor, "... n d"]:
    """Rotary positions 0, 1, ... (arXiv 2104.09864): number i and number i + d/2 of a vector turn together."""
    count, width = x.shape[-2:]
    speeds = 10_000.0 ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(count, device=x.device, dtype=torch.float32), speeds).repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos().to(x.dtype) + torch.cat([-second, first], dim=-1) * angles.sin().to(x.dtype)
