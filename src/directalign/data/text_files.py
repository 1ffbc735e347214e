"""Reading what users wrote: UTF-8 files and single prompts, refused in one line that says where and why.

Prompt lists (`prompts`), captions (`images`) and recipes (`config_loading`) all come through here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from ..io.text import json_rows, read_text
from ..types import DirectAlignError

__all__ = ["PROMPT_KEYS", "checked_prompt", "json_rows", "prompt_key", "prompt_of_row", "read_text"]

MAX_CHARACTERS = 2000
"""Longest prompt accepted: no text encoder in use reads as much, so a longer one is another file by mistake."""

PROMPT_KEYS = ("prompt", "caption", "text")
"""Names under which a prompt is looked up in rows with named fields, first match wins, case ignored."""


def checked_prompt(prompt: str, where: str) -> str:
    """The prompt without surrounding blanks; too long a prompt or a control character is refused, naming `where`."""
    prompt = prompt.strip()
    if len(prompt) > MAX_CHARACTERS:
        raise DirectAlignError(
            f"{where}: prompt of {len(prompt):,} characters; the limit is {MAX_CHARACTERS:,}: one prompt a line, or shorten it"
        )
    control = next(
        (c for c in prompt if unicodedata.category(c) == "Cc" and c not in "\t\r\n"), None
    )
    if control is not None:
        raise DirectAlignError(
            f"{where}: control character U+{ord(control):04X} at character {prompt.index(control) + 1}; remove it (is this a text file?)"
        )
    return prompt


def prompt_key(names: list[str]) -> str | None:
    """Which of `names` holds the prompt, or None."""
    lowered = {name.strip().lower(): name for name in reversed(names)}
    return next((lowered[key] for key in PROMPT_KEYS if key in lowered), None)


def prompt_of_row(row: Mapping[str, Any], where: str) -> str:
    """The prompt in a row with named fields, as text; not yet checked."""
    key = prompt_key(list(row))
    if key is None:
        raise DirectAlignError(
            f"{where}: no key {', '.join(PROMPT_KEYS[:-1])} or {PROMPT_KEYS[-1]} among {', '.join(map(repr, row)) or 'none'}"
        )
    if not isinstance(row[key], str):
        raise DirectAlignError(
            f"{where}: {key} is {type(row[key]).__name__} {row[key]!r:.60}, and text is needed"
        )
    return row[key]
