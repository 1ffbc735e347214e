"""What SD3 and SDXL ask of a CLIP text encoder: the hidden states before its last layer, and its projected pooled output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..diffusion.path import classifier_free_guidance
from ..types import Conditioning, DirectAlignError, Latents


def read(text_encoder: Any, tokenizer: Any, prompts: list[str], length: int) -> tuple[Tensor, Any]:
    """Penultimate hidden states (b, length, d), and all that the encoder says (`text_embeds` where it projects); longer prompts are cut."""
    tokens = tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    said = text_encoder(tokens.input_ids.to(text_encoder.device), output_hidden_states=True)
    return said.hidden_states[-2], said


def read_both(
    encoders: list[Any], tokenizers: list[Any], prompts: list[str]
) -> tuple[Tensor, list[Any]]:
    """Penultimate states of two encoders side by side (b, tokens, d1 + d2), as many tokens as the first tokenizer's; and what each said."""
    length = tokenizers[0].model_max_length
    states, said = zip(
        *(
            read(encoder, tokenizer, prompts, length)
            for encoder, tokenizer in zip(encoders, tokenizers, strict=True)
        ),
        strict=True,
    )
    return torch.cat(states, -1), list(said)


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
    rows, columns = torch.meshgrid(
        torch.arange(h // 2, device=device), torch.arange(w // 2, device=device), indexing="ij"
    )
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
    still, row, column = (
        torch.arange(1, device=device),
        torch.arange(h, device=device),
        torch.arange(w, device=device),
    )
    return torch.cartesian_prod(still, row, column, still)


def text_places(num_tokens: int, device: torch.device) -> Int[Tensor, "tokens 4"]:
    """(0, 0, 0, place in the text) of every text token."""
    place = torch.arange(num_tokens, device=device)
    return torch.nn.functional.pad(place[:, None], (3, 0))


Combine = Callable[[Latents, Latents, float], Latents]
"""(under the prompt, under the empty prompt, cfg_scale) -> the guided prediction."""


def guided(
    call: Callable[[Mapping[str, Tensor]], Latents],
    cond: Conditioning,
    combine: Combine = classifier_free_guidance,
) -> Latents:
    """`call` under the prompt, and under the empty prompt too when `cfg_scale` is not 1."""
    pred = call(cond.tensors)
    if cond.cfg_scale == 1.0:
        return pred
    if cond.unconditional is None:
        raise DirectAlignError(
            f"cfg_scale {cond.cfg_scale} needs the embedding of the empty prompt: encode the prompts with the model, or set cfg_scale 1"
        )
    return combine(pred, call(cond.unconditional), cond.cfg_scale)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision where the forward pass is bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
