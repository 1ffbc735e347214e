"""What a source of images offers before any of them is decoded: names, captions, and where each picture is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .image_io import Picture
from .text_files import checked_prompt


@dataclass(frozen=True)
class Entry:
    """One image of a source: its name within it, its caption, and why the pair cannot be used (None: it can, so far)."""

    name: str
    caption: str
    fault: str | None = None


@dataclass(frozen=True)
class Candidates:
    """All images of a source in its own order; `where` names it in errors, `picture(i)` gives the i-th without decoding it."""

    where: str
    entries: tuple[Entry, ...]
    picture: Callable[[int], Picture]
    hint: str
    """What to check when there is none."""


def captioned(name: str, text: str, where: str, blank: str) -> Entry:
    """An entry whose caption was found at `where`; a blank one is its fault, one that is no valid prompt is refused."""
    caption = checked_prompt(text, where)
    return Entry(name, caption, None if caption else f"no caption: {blank} is blank")
