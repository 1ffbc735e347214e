"""Tokens of the networks that want them: each 2x2 block of latents becomes one token of 4c numbers, with its place on the grid.

For `flux`, `qwen_image` and `flux2_klein`, whose latents are such blocks already; they stay unpacked (b, c, h, w) everywhere else.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..types import Latents

Tokens = Float[Tensor, "b tokens features"]


def pack(latents: Latents) -> Tokens:
    """(b, c, h, w) to (b, h/2·w/2, 4c), rows first; features run over (c, row in block, column in block). h and w are even."""
    b, c, h, w = latents.shape
    blocks = latents.reshape(b, c, h // 2, 2, w // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Tokens, h: int, w: int) -> Latents:
    """The inverse of `pack` for latents of height h and width w."""
    b, _, features = tokens.shape
    blocks = tokens.reshape(b, h // 2, w // 2, features // 4, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(b, features // 4, h, w)


def image_ids(h: int, w: int, device: torch.device) -> Float[Tensor, "tokens 3"]:
    """(0, row, column) of every token of latents of height h and width w, for the rotary embedding."""
    rows, columns = torch.meshgrid(torch.arange(h // 2, device=device), torch.arange(w // 2, device=device), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def text_ids(num_tokens: int, device: torch.device) -> Float[Tensor, "tokens 3"]:
    """Text tokens have no place on the grid: all zeros."""
    return torch.zeros(num_tokens, 3, device=device)


def flatten(latents: Latents) -> Tokens:
    """(b, c, h, w) to (b, h·w, c), rows first: one token for each place."""
    return latents.flatten(2).transpose(1, 2)


def unflatten(tokens: Tokens, h: int, w: int) -> Latents:
    """The inverse of `flatten` for latents of height h and width w."""
    return tokens.transpose(1, 2).unflatten(2, (h, w))


def image_places(h: int, w: int, device: torch.device) -> Int[Tensor, "tokens 4"]:
    """(0, row, column, 0) of every token of latents of height h and width w, one token for each place."""
    still, row, column = torch.arange(1, device=device), torch.arange(h, device=device), torch.arange(w, device=device)
    return torch.cartesian_prod(still, row, column, still)


def text_places(num_tokens: int, device: torch.device) -> Int[Tensor, "tokens 4"]:
    """(0, 0, 0, place in the text) of every text token."""
    place = torch.arange(num_tokens, device=device)
    return torch.nn.functional.pad(place[:, None], (3, 0))
