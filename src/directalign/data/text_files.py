"""Prompts and captions in rows of text files and datasets: which column, and what is valid."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from ..types import DirectAlignError

MAX_CHARACTERS = 2000
"""Longest accepted prompt; no text encoder in use reads as much."""

PROMPT_KEYS = ("prompt", "caption", "text")
"""Names of the prompt column, by priority; case is ignored."""


def checked_prompt(prompt: str, where: str) -> str:
    """The stripped prompt. Raises DirectAlignError if too long or with a control character."""
    prompt = prompt.strip()
    if len(prompt) > MAX_CHARACTERS:
        raise DirectAlignError(
            f"{where}: prompt of {len(prompt):,} characters; the limit is {MAX_CHARACTERS:,}: one "
            "prompt a line, or shorten it"
        )
    for position, character in enumerate(prompt, start=1):
        if unicodedata.category(character) == "Cc" and character not in "\t\r\n":
            raise DirectAlignError(
                f"{where}: control character U+{ord(character):04X} at character {position}; "
                "remove it (is this a text file?)"
            )
    return prompt


def prompt_key(names: Sequence[str], where: str, kind: str = "column", remedy: str = "") -> str:
    """The name of the prompt column. Raises DirectAlignError, naming `where`, if there is none."""
    lowered = {name.strip().lower(): name for name in reversed(names)}
    found = next((lowered[key] for key in PROMPT_KEYS if key in lowered), None)
    if found is None:
        raise DirectAlignError(
            f"{where}: no {kind} {', '.join(PROMPT_KEYS[:-1])} or {PROMPT_KEYS[-1]} among "
            f"{listed(names)}{remedy}"
        )
    return found


def prompt_of_row(row: Mapping[str, Any], where: str) -> str:
    """The unchecked prompt of a row with named fields. Raises DirectAlignError if it has none."""
    key = prompt_key(list(row), where, "key")
    if not isinstance(row[key], str):
        raise DirectAlignError(
            f"{where}: {key} is {type(row[key]).__name__} {row[key]!r:.60}, and text is needed"
        )
    return row[key]


def listed(names: Sequence[str]) -> str:
    """Names in quotes for an error line, cut to 200 characters."""
    return ", ".join(map(repr, names))[:200] or "none"
