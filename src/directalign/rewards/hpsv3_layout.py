"""The published file of HPSv3: which tensors a Qwen2-VL with its head has, under which names, and how they are put in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLModel
from transformers.utils import logging

from ..types import DirectAlignError
from .published import check_tensors
from .vlm_model import kind_of

EMBEDDING = "language_model.embed_tokens.weight"
UNUSED = ("lm_head.",)
"""The vocabulary's head, which the file holds and the score never asks."""
HEAD = "rm_head."


def inner(name: str) -> str:
    """The name in a Qwen2VLModel of a published tensor, of either layout."""
    own = name.removeprefix("model.")
    return own if own.startswith(("visual.", "language_model.", HEAD, *UNUSED)) else f"language_model.{own}"


def described(shapes: Mapping[str, Sequence[int]], reader: Path, file: Path, key: str) -> Qwen2VLConfig:
    """The config of a file's model: its processor's, with as many tokens as the file embeds; `shapes` by inner names.

    Raises DirectAlignError with what the file lacks, has too much of, or has in another shape.
    """
    if kind_of(reader, f"{key}.processor") is not Qwen2VLForConditionalGeneration:
        raise DirectAlignError(f"{key}.processor: {reader}: holds no Qwen2-VL, under which HPSv3 was made; give Qwen/Qwen2-VL-7B-Instruct")
    told: Qwen2VLConfig = Qwen2VLConfig.from_pretrained(reader)
    text = told.get_text_config()
    text.vocab_size = int(shapes.get(EMBEDDING, [text.vocab_size])[0])
    with torch.device("meta"):
        model, head = Qwen2VLModel(told), head_of(told)
    wanted = model.state_dict() | {HEAD + name: tensor for name, tensor in head.state_dict().items()}
    check_tensors({name: tuple(tensor.shape) for name, tensor in wanted.items()}, shapes, file, f"{key}.path", "HPSv3", UNUSED)
    return told


def head_of(told: Qwen2VLConfig) -> nn.Sequential:
    """From a hidden state to mu and sigma; where training dropped out, nothing happens."""
    width = told.get_text_config().hidden_size
    return nn.Sequential(nn.Linear(width, 1024), nn.ReLU(), nn.Identity(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))


def filled(told: Qwen2VLConfig, weights: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Qwen2VLModel, nn.Sequential]:
    """Model in `dtype` and head in float32 with the weights of a checked file, by inner names."""
    logging.disable_progress_bar()
    below = {name: tensor for name, tensor in weights.items() if not name.startswith((HEAD, *UNUSED))}
    model: Any = Qwen2VLModel.from_pretrained(None, config=told, state_dict=below, dtype=dtype)
    head = head_of(told)
    head.load_state_dict({name.removeprefix(HEAD): tensor for name, tensor in weights.items() if name.startswith(HEAD)})
    return model, head
