"""What SD3 and SDXL ask of a CLIP text encoder: the hidden states before its last layer, and its projected pooled output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def read(text_encoder: Any, tokenizer: Any, prompts: list[str], length: int) -> tuple[Tensor, Any]:
    """Penultimate hidden states (b, length, d), and all that the encoder says (`text_embeds` where it projects); longer prompts are cut."""
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    said = text_encoder(tokens.input_ids.to(text_encoder.device), output_hidden_states=True)
    return said.hidden_states[-2], said


def read_both(encoders: list[Any], tokenizers: list[Any], prompts: list[str]) -> tuple[Tensor, list[Any]]:
    """Penultimate states of two encoders side by side (b, tokens, d1 + d2), as many tokens as the first tokenizer's; and what each said."""
    length = tokenizers[0].model_max_length
    states, said = zip(*(read(encoder, tokenizer, prompts, length) for encoder, tokenizer in zip(encoders, tokenizers, strict=True)), strict=True)
    return torch.cat(states, -1), list(said)
