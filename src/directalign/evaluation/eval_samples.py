"""What every model of a comparison has one image of: a prompt with a seed. The same items, in the same order, for all.

Seeds are never shared between items, so that prompts are independent of each other and whole prompts can be resampled. Control
prompts that training is not about come last, under the group `control_prompts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import config
from ..data.shuffle import permutation
from ..toyworld.judges import plain_caption
from .control_prompts import FIRST_OFF_TOPIC_SEED, off_topic_prompts
from .eval_prompts import FIRST_SEED, PromptRow

OFF_TOPIC = "control_prompts"
SEEDS_PER_PROMPT = 2
"""If nothing is said: the least by which diversity within a prompt is seen."""


@dataclass(frozen=True)
class Item:
    """One image of every model: its place, prompt and seed, the group of its prompt set, and what that set says must be in the picture."""

    index: int
    prompt: str
    seed: int
    group: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def control_prompts(self) -> bool:
        return self.group == OFF_TOPIC


def items_of(
    rows: Sequence[PromptRow], num_samples: int | None, seeds_per_prompt: int = SEEDS_PER_PROMPT
) -> list[Item]:
    """Each prompt with so many seeds of its own, the images of one prompt next to each other, prompts in the fixed shuffled order.

    `num_samples` takes as many prompts as that needs; where there are too few, each gets more seeds. None takes all prompts.
    """
    count = len(rows) * seeds_per_prompt if num_samples is None else num_samples
    each = max(seeds_per_prompt, -(-count // len(rows)))
    order = permutation(len(rows), seed=0, epoch=0)
    chosen = [rows[order[place // each]] for place in range(count)]
    return [
        Item(index, row.prompt, FIRST_SEED + index, row.group, row.facts)
        for index, row in enumerate(chosen)
    ]


def off_topic_items(
    source: str, words: config.ControlPhrases, first: int, count: int
) -> list[Item]:
    """`count` control images from index `first` on, each of another prompt while there are enough, with seeds that nothing else has."""
    prompts = off_topic_prompts(source, words)
    order = permutation(len(prompts), seed=0, epoch=0)
    return [
        Item(
            first + place,
            prompts[order[place % len(order)]],
            FIRST_OFF_TOPIC_SEED + place,
            OFF_TOPIC,
        )
        for place in range(count)
    ]


def batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """The items in batches of about `size` that never part the images of one prompt, nor mix control prompts with others."""
    by_prompt: dict[tuple[bool, str], list[Item]] = {}
    for item in items:
        by_prompt.setdefault((item.control_prompts, item.prompt), []).append(item)
    found: list[list[Item]] = []
    for (control_prompts, _), own in by_prompt.items():
        if (
            not found
            or found[-1][0].control_prompts != control_prompts
            or len(found[-1]) + len(own) > size
        ):
            found.append([])
        found[-1].extend(own)
    return found


def unreadable(items: Sequence[Item], captions: Sequence[str]) -> str | None:
    """The first prompt that is no caption, control phrases put aside; None where all are."""
    known = set(captions)
    return next(
        (
            item.prompt
            for item in items
            if not item.control_prompts and plain_caption(item.prompt) not in known
        ),
        None,
    )
