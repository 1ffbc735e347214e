"""What a Qwen VL is shown: a chat in its own template whose user turn is an image and a text, as token ids with their rotary positions.

Each chat holds one image. Its tokens get positions (time, row, column) that all start where the text before them ends; the text behind
goes on after the longer side of the image (multimodal rotary positions). Shorter chats are padded on the right, where nothing that is
read ever looks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..types import DirectAlignError
from .folders import first_line

VOCABULARIES = ("tokenizer.json", "vocab.json")
IMAGE = "<|image_pad|>"
"""The token that stands for an image, or for one token of it, in all models of this kind."""


@dataclass(frozen=True)
class Asked:
    """Chats of equally large images: ids (b, length), the place of each chat's first image token of so many, and each one's own length."""

    ids: Int[Tensor, "b length"]
    starts: tuple[int, ...]
    image_tokens: int
    lengths: tuple[int, ...]

    @property
    def attended(self) -> Int[Tensor, "b length"]:
        """1 where a chat's own tokens are, 0 for padding."""
        return (self._places < self._column(self.lengths)).long()

    @property
    def of_image(self) -> Bool[Tensor, "b length"]:
        """True where the image's tokens go."""
        starts = self._column(self.starts)
        return (self._places >= starts) & (self._places < starts + self.image_tokens)

    @property
    def _places(self) -> Tensor:
        return torch.arange(self.ids.shape[1], device=self.ids.device)

    def _column(self, numbers: tuple[int, ...]) -> Tensor:
        return torch.tensor(numbers, device=self.ids.device)[:, None]


class Chat:
    """Tokenizer and template; `end` cuts a rendered chat behind its last occurrence, None keeps it up to where the answer begins."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, end: str | None = None) -> None:
        self.tokenizer, self.template, self.end = tokenizer, template, end
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE))  # pyright: ignore[reportArgumentType]

    def ask(self, texts: Sequence[str], image_tokens: int, device: torch.device | str = "cpu") -> Asked:
        """One chat per text, each with an image of so many tokens. Raises DirectAlignError for a text that holds the image token itself."""
        rows = [self._ids(text) for text in texts]
        starts = tuple(row.index(self.image_id) for row in rows)
        filled = [row[:start] + [self.image_id] * image_tokens + row[start + 1 :] for row, start in zip(rows, starts, strict=True)]
        lengths = tuple(len(row) for row in filled)
        pad = self.tokenizer.pad_token_id or 0
        padded = [row + [pad] * (max(lengths) - len(row)) for row in filled]
        return Asked(torch.tensor(padded, device=device), starts, image_tokens, lengths)

    def render(self, text: str) -> str:
        """The chat in words, its image as one token."""
        chat: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        rendered: Any = self.tokenizer.apply_chat_template(chat, chat_template=self.template, tokenize=False, add_generation_prompt=True)
        return rendered if self.end is None else rendered[: rendered.rindex(self.end) + len(self.end)]

    def _ids(self, text: str) -> list[int]:
        ids = list(self.tokenizer(self.render(text))["input_ids"])
        if ids.count(self.image_id) != 1:
            raise DirectAlignError(f"the prompt {text!r} holds {IMAGE}, which stands for the image: take it out")
        return ids


def read_chat(folder: Path, key: str) -> tuple[PreTrainedTokenizerBase, str]:
    """Tokenizer and chat template of a folder. Raises DirectAlignError: either is missing or unreadable, or shows no image."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise DirectAlignError(f"{key}: {folder}: tokenizer.json (or vocab.json and merges.txt) is missing; copy it from the original checkpoint")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise DirectAlignError(f"{key}: {folder}: its tokenizer cannot be read ({first_line(error)})") from error
    template = _template(folder, tokenizer, key)
    if IMAGE not in tokenizer.get_vocab():
        raise DirectAlignError(f"{key}: {folder}: its tokenizer has no {IMAGE}; take the tokenizer of a Qwen VL")
    try:
        shown = Chat(tokenizer, template).render("").count(IMAGE)
    except TemplateError as error:
        raise DirectAlignError(f"{key}: {folder}: its chat template cannot be used ({first_line(error)}); copy it from the original checkpoint") from error
    if shown != 1:
        raise DirectAlignError(f"{key}: {folder}: its chat template shows no image; take the chat_template.json of a Qwen VL")
    return tokenizer, template


def _template(folder: Path, tokenizer: PreTrainedTokenizerBase, key: str) -> str:
    """The processor's template where there is one, which shows images; else the tokenizer's."""
    file = folder / "chat_template.json"
    try:
        template = json.loads(file.read_text(encoding="utf-8"))["chat_template"] if file.exists() else tokenizer.chat_template
    except (ValueError, KeyError, TypeError) as error:
        raise DirectAlignError(f"{key}: {file}: holds no chat template ({first_line(error)}); copy it from the original checkpoint") from error
    if not isinstance(template, str):
        raise DirectAlignError(f"{key}: {folder}: chat_template.json (or .jinja) is missing; copy it from the original checkpoint")
    return template


def rotary_positions(asked: Asked, rows: int, columns: int) -> Int[Tensor, "3 b length"]:
    """Time, row and column of every token, for images of `rows` x `columns` tokens; those of padding are never read."""
    return torch.stack([_positions(asked.ids.shape[1], start, rows, columns) for start in asked.starts], dim=1).to(asked.ids.device)


def _positions(length: int, start: int, rows: int, columns: int) -> Tensor:
    image = torch.stack(torch.meshgrid(torch.zeros(1).long(), torch.arange(rows), torch.arange(columns), indexing="ij")).reshape(3, -1) + start
    behind = torch.arange(length - start - rows * columns) + start + max(rows, columns)
    return torch.cat([torch.arange(start).expand(3, -1), image, behind.expand(3, -1)], dim=1)
