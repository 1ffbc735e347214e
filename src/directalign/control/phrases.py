"""Which phrases are tried as control words: the user's, those of a recipe, or a common list; refused by name where they cannot be any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..rewards.soft_prompts import is_tokens_file
from ..texts import checked_prompt, read_text
from ..types import DirectAlignError
from .asked import recipe_words

LONGEST = 200
"""Characters of a phrase: it stands before the prompt, and rewards read 16 to 77 tokens in all."""
MOST = 500

COMMON = (
    *("Photo", "Realistic photo", "Natural lighting", "Real", "Detailed", "Film still", "Sharp", "High quality"),
    *("CG render", "Render", "Glossy plastic", "Oil painting", "Painting", "Brush strokes", "Anime", "Cartoon", "Flat cartoon", "Concept art"),
    *("Digital art", "Sketch", "Watercolor", "Pixel art", "Comic", "Image", "Picture", "Simple", "Vintage", "Neon", "Cyberpunk", "Baroque"),
)
"""Tried when no phrase is named: styles, the words of arXiv 2509.06942, and words that should say little."""


def checked_phrases(phrases: Sequence[str], where: str) -> tuple[str, ...]:
    """The phrases without surrounding blanks, once each, whatever the case.

    Raises:
        DirectAlignError: an empty one, one of more than 200 characters or of several lines, a control character, more than 500.
    """
    if len(phrases) > MOST:
        raise DirectAlignError(f"{where}: {len(phrases):,} phrases; {MOST} at most are tried at once")
    kept: dict[str, str] = {}
    for number, phrase in enumerate(phrases, start=1):
        text = checked_prompt(phrase, where)
        if not text.strip(" ."):
            raise DirectAlignError(f"{where}: phrase {number} is empty; give words, or leave it out")
        if len(text) > LONGEST or "\n" in text or "\r" in text:
            raise DirectAlignError(
                f"{where}: phrase {number} ({text[:40]!r}...) has {len(text)} characters; one line of {LONGEST} at most can stand before a prompt"
            )
        kept.setdefault(text.casefold(), text)
    return tuple(kept.values())


def words_alone(phrases: Sequence[str], why: str) -> None:
    """Refuse files of learned tokens where words are wanted; `why` says what for. Raises: DirectAlignError."""
    learned = next((phrase for phrase in phrases if is_tokens_file(phrase)), None)
    if learned is not None:
        raise DirectAlignError(f"{learned}: is a file of learned tokens, and {why}; give words")


def candidates_file(file: Path) -> tuple[str, ...]:
    """One phrase a line; blank lines and those that begin with # are passed over."""
    lines = [line for line in read_text(file, "file of candidates").splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise DirectAlignError(f"{file}: no phrase in it; write one a line")
    return checked_phrases(lines, str(file))


def sides(reward: str, positive: Sequence[str], negative: Sequence[str], file: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Candidates for the wanted and for the unwanted side, each from what was named for it.

    Without any name for a side it takes the file's, else the recipe's words for that side (`reward` is a recipe), else the common list.
    With a file, all of its phrases are candidates for both.
    """
    of_file = candidates_file(file) if file else ()
    words = recipe_words(reward)
    given = (("--positive", positive, words.positive), ("--negative", negative, words.negative))
    wanted, unwanted = (checked_phrases([*named, *of_file] or recipe or COMMON, option) for option, named, recipe in given)
    return wanted, unwanted
