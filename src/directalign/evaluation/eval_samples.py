"""Evaluation samples: one prompt and seed each. All candidates of a comparison share them, in the
same order.

Seeds are never shared between samples, so prompts are independent and can be resampled as groups.
Control prompts come last, in the group `control_prompts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import config
from ..data.shuffle import permutation
from ..toyworld.judges import plain_caption
from .control_prompts import control_pairs, read_control_prompts
from .eval_prompts import FIRST_SEED, Pairs, PromptRow

CONTROL_GROUP = "control_prompts"
SEEDS_PER_PROMPT = 2
"""Default; the smallest number that shows diversity within a prompt."""


@dataclass(frozen=True)
class EvalSample:
    """One image per candidate: index, prompt, seed, group of the prompt set, GenEval's facts."""

    index: int
    prompt: str
    seed: int
    group: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_control(self) -> bool:
        """Whether training is unrelated to the prompt."""
        return self.group == CONTROL_GROUP


def samples_of(pairs: Pairs, group: str | None = None, first: int = 0) -> list[EvalSample]:
    """Samples of prompt-seed pairs, with indices from `first`."""
    numbered = enumerate(zip(pairs.prompts, pairs.seeds, strict=True), start=first)
    return [EvalSample(index, prompt, seed, group) for index, (prompt, seed) in numbered]


def samples_of_rows(
    rows: Sequence[PromptRow], num_samples: int | None, seeds_per_prompt: int = SEEDS_PER_PROMPT
) -> list[EvalSample]:
    """Each prompt with its own seeds, grouped by prompt, prompts in the fixed shuffled order.

    `num_samples` None: all prompts. A number uses as many prompts as it needs; if there are too
    few, each gets more seeds.
    """
    count = len(rows) * seeds_per_prompt if num_samples is None else num_samples
    each = max(seeds_per_prompt, -(-count // len(rows)))
    order = permutation(len(rows), seed=0, epoch=0)
    chosen = [rows[order[place // each]] for place in range(count)]
    return [
        EvalSample(index, row.prompt, FIRST_SEED + index, row.group, row.facts)
        for index, row in enumerate(chosen)
    ]


def control_samples(
    source: str, phrases: config.ControlPhrases, first: int, count: int
) -> list[EvalSample]:
    """`count` samples of control prompts with indices from `first`; prompts repeat if too few."""
    pairs = control_pairs(read_control_prompts(source, phrases), count)
    return samples_of(pairs, CONTROL_GROUP, first)


def batches(samples: Sequence[EvalSample], size: int) -> list[list[EvalSample]]:
    """Batches of about `size` that never split a prompt nor mix control prompts with others."""
    by_prompt: dict[tuple[bool, str], list[EvalSample]] = {}
    for sample in samples:
        by_prompt.setdefault((sample.is_control, sample.prompt), []).append(sample)
    found: list[list[EvalSample]] = []
    for (control, _), own in by_prompt.items():
        if not found or found[-1][0].is_control != control or len(found[-1]) + len(own) > size:
            found.append([])
        found[-1].extend(own)
    return found


def first_unknown_prompt(samples: Sequence[EvalSample], captions: Sequence[str]) -> str | None:
    """The first prompt (control prompts excepted) that is no caption; None if all are."""
    known = set(captions)
    prompts = (sample.prompt for sample in samples if not sample.is_control)
    return next((prompt for prompt in prompts if plain_caption(prompt) not in known), None)
