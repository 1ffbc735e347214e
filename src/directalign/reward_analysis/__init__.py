"""Reward analysis: measure, select and learn control phrases. Commands: `directalign reward ...`.

Most parts accept any `interfaces.Reward`; the others refuse a reward without a text tower. This
module validates the phrases that users pass.
"""

from collections.abc import Sequence
from pathlib import Path

from ..io.text import checked_prompt, read_text
from ..rewards import recipe_words
from ..rewards.soft_prompts import is_tokens_file
from ..types import DirectAlignError

MAX_LENGTH = 200
"""Characters of a phrase: rewards read only 16 to 77 tokens, with the prompt."""
MAX_PHRASES = 500

COMMON = (
    *("Photo", "Realistic photo", "Natural lighting", "Real", "Detailed", "Film still", "Sharp"),
    *("High quality", "CG render", "Render", "Glossy plastic", "Oil painting", "Painting"),
    *("Brush strokes", "Anime", "Cartoon", "Flat cartoon", "Concept art", "Digital art", "Sketch"),
    *("Watercolor", "Pixel art", "Comic", "Image", "Picture", "Simple", "Vintage", "Neon"),
    *("Cyberpunk", "Baroque"),
)
"""Default candidates: styles, the phrases of arXiv 2509.06942, and neutral words as controls."""


def checked_phrases(phrases: Sequence[str], where: str) -> tuple[str, ...]:
    """Strip the phrases and remove duplicates, ignoring case.

    Raises:
        DirectAlignError: an empty phrase, more than 200 characters, several lines, a control
            character, or more than 500 phrases.
    """
    if len(phrases) > MAX_PHRASES:
        raise DirectAlignError(f"{where}: {len(phrases):,} phrases; the limit is {MAX_PHRASES}")
    unique: dict[str, str] = {}
    for number, phrase in enumerate(phrases, start=1):
        text = checked_prompt(phrase, where)
        if not text.strip(" ."):
            raise DirectAlignError(f"{where}: phrase {number} is empty; give words, or remove it")
        if len(text) > MAX_LENGTH or "\n" in text or "\r" in text:
            raise DirectAlignError(
                f"{where}: phrase {number} ({text[:40]!r}...) has {len(text)} characters; give one "
                f"line of {MAX_LENGTH} characters at most"
            )
        unique.setdefault(text.casefold(), text)
    return tuple(unique.values())


def require_words(phrases: Sequence[str], why: str) -> None:
    """Refuse files of learned tokens, for the reason `why`. Raises: DirectAlignError."""
    for phrase in phrases:
        if is_tokens_file(phrase):
            raise DirectAlignError(f"{phrase}: is a file of learned tokens, and {why}; give words")


def candidates_file(file: Path) -> tuple[str, ...]:
    """Read one phrase per line; blank lines and lines that start with # are skipped."""
    stripped = (line.strip() for line in read_text(file, "file of candidates").splitlines())
    lines = [line for line in stripped if line and not line.startswith("#")]
    if not lines:
        raise DirectAlignError(f"{file}: no phrase in it; write one per line")
    return checked_phrases(lines, str(file))


def candidate_sides(
    reward: str, positive: Sequence[str], negative: Sequence[str], file: Path | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Candidates for the positive and the negative side.

    Each side takes its named phrases plus all phrases of `file`; if there are none, those of the
    recipe (if `reward` is one), else `COMMON`.
    """
    from_file, recipe = candidates_file(file) if file else (), recipe_words(reward)
    return (
        checked_phrases([*positive, *from_file] or recipe.positive or COMMON, "--positive"),
        checked_phrases([*negative, *from_file] or recipe.negative or COMMON, "--negative"),
    )
