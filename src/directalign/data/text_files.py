"""Reading what users wrote: UTF-8 files and single prompts, refused in one line that says where and why.

Prompt lists (`prompts`), captions (`images`) and recipes (`config_loading`) all come through here.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..types import DirectAlignError

MAX_CHARACTERS = 2000
"""Longest prompt accepted: no text encoder in use reads as much, so a longer one is another file by mistake."""

PROMPT_KEYS = ("prompt", "caption", "text")
"""Names under which a prompt is looked up in rows with named fields, first match wins, case ignored."""


def read_text(path: Path, what: str) -> str:
    """The file's text, without a byte-order mark. `what` names the kind of file in errors ("prompt file")."""
    if not path.exists():
        raise DirectAlignError(
            f"{path}: no such {what}; check the path (it is taken from the current folder, {Path.cwd()})"
        )
    if path.is_dir():
        raise DirectAlignError(f"{path}: is a folder, and a {what} is needed")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DirectAlignError(f"{path}: cannot read this {what}: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise DirectAlignError(
            f"{path}:{line}: not UTF-8: byte 0x{byte:02x} at offset {error.start}; save the {what} as UTF-8"
        ) from error


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


def json_rows(path: Path, what: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number from 1, object) of a JSON-lines file; blank lines are skipped."""
    for number, line in enumerate(read_text(path, what).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DirectAlignError(
                f'{path}:{number}: not JSON ({error}); write one object a line, like {{"prompt": "a red star"}}'
            ) from error
        if not isinstance(row, dict):
            raise DirectAlignError(
                f'{path}:{number}: {type(row).__name__} instead of an object; write it like {{"prompt": "a red star"}}'
            )
        yield number, row


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
