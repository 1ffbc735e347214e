"""Control prompts: prompts that training has nothing to do with. What changes on them has leaked.

Their images get the same metrics as all others, under names with `off_topic_` before them, and
their colours are compared with the base model's images of the same seeds. Those of the toy world
are held-out captions in a style of their own ("Oil painting. a red star ..."), a style that no
positive control phrase of the run names.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import config
from ..data.prompts import held_out_captions, read_prompts
from ..toyworld.scenes import STYLE_WORDS
from ..types import DirectAlignError
from .eval_prompts import FIRST_SEED, Pairs, fixed_pairs

KEY = "evaluate.control_prompts"
WORLD = "world"
FIRST_CONTROL_SEED = 3 * FIRST_SEED


def read_control_prompts(source: str, phrases: config.ControlPhrases) -> list[str]:
    """The prompts of a recipe's `evaluate.control_prompts`.

    Raises: DirectAlignError for an unreadable list, and for "world" if the positive phrases name
    every style of the toy world.
    """
    if source != WORLD:
        try:
            return read_prompts(source)
        except DirectAlignError as error:
            raise DirectAlignError(f"{KEY}: {error}") from error
    wanted = set(phrases.positive)
    others = [names[0] for names in STYLE_WORDS.values() if not set(names) & wanted]
    if not others:
        raise DirectAlignError(
            f"{KEY}: world: method.control_phrases.positive names every style of the toy world, "
            "so none of its prompts is off topic; give a file of prompts"
        )
    return [f"{phrase}. {caption}" for caption in held_out_captions() for phrase in others]


def control_pairs(prompts: Sequence[str], count: int) -> Pairs:
    """`count` pairs in the fixed shuffled order, with seeds that no other evaluation uses."""
    pairs = fixed_pairs(prompts, count)
    return Pairs(pairs.prompts, tuple(range(FIRST_CONTROL_SEED, FIRST_CONTROL_SEED + count)))


def named_styles(prompts: Sequence[str]) -> tuple[str, ...]:
    """The toy world's style that each prompt begins with."""
    style_of = {phrases[0]: style for style, phrases in STYLE_WORDS.items()}
    return tuple(style_of[prompt.split(". ")[0]] for prompt in prompts)
