"""Everything that `directalign words` finds: phrases in order, pairs, what is suggested, and what warns; as plain data for words.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..interfaces import Reward
from ..types import DirectAlignError
from .answers import Seen
from .suggest import Suggestion, anchored_section, fit, relative_section, suggest, suggestion_warnings
from .words import Pair, Table, Word, pair_warnings, word_warnings

SHOWN = 24
"""Pairs that are listed, those with the largest size of gap."""


@dataclass(frozen=True)
class Findings:
    """Phrases by falling size of lift, pairs by falling size of gap, all given words together where both sides were named."""

    words: tuple[Word, ...]
    pairs: tuple[Pair, ...]
    together: Pair | None
    suggestion: Suggestion | None
    limit: int | None
    prompts: int
    gap_by_image: tuple[tuple[float, ...], tuple[float, ...]]
    """pos − neg of each wanted and of each unwanted image under the suggested phrases, else the first pair's."""

    def of_word(self, word: Word) -> list[str]:
        """Warnings of one phrase."""
        return word_warnings(word, self.limit, self.prompts)

    @property
    def warnings(self) -> list[str]:
        """Warnings of what is suggested, or that nothing is."""
        if self.suggestion is None:
            return ["nothing to suggest: no phrase that fits lifts the wanted images on one side and the unwanted ones on the other; try other words"]
        return pair_warnings(self.suggestion.pair) + suggestion_warnings(self.suggestion)


def find(reward: Reward, seen: Seen, positive: Sequence[str], negative: Sequence[str]) -> Findings:
    """Measure every phrase of both lists, their pairs, and what to choose; a list may hold the same phrases as the other.

    Raises: DirectAlignError for a reward that ignores the prompt.
    """
    if not reward.reads_prompt:
        raise DirectAlignError(f"--reward: {reward.name} ignores prompts, so words say nothing to it; take a reward with a text side (reward.name: clip)")
    table = Table(reward, seen)
    words = {phrase: table.word(phrase) for phrase in dict.fromkeys((*positive, *negative))}
    sides = [words[phrase] for phrase in positive], [words[phrase] for phrase in negative]
    same = tuple(positive) == tuple(negative)
    suggestion = suggest(table, *sides)
    pairs = _pairs(table, *((fit(sides[0], 1), fit(sides[1], -1)) if same else (positive, negative)))
    together = None if same else table.pair(positive, negative)
    shown = suggestion.pair if suggestion else pairs[0] if pairs else None
    ordered = tuple(sorted(words.values(), key=lambda word: -word.lift.size))
    return Findings(ordered, pairs, together, suggestion, table.limit, len(seen.wanted.prompts), _by_image(table, shown))


def _pairs(table: Table, positive: Sequence[str], negative: Sequence[str]) -> tuple[Pair, ...]:
    both = [([pos], [neg]) for pos in positive for neg in negative if pos != neg]
    both.sort(key=lambda pair: -table.gap(*pair).size)
    return tuple(table.pair(*pair) for pair in both[:SHOWN])


def _by_image(table: Table, pair: Pair | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if pair is None:
        return (), ()
    pos, neg = table.sides(pair.positive, pair.negative)
    relative = pos.minus(neg)
    return tuple(relative.wanted.tolist()), tuple(relative.unwanted.tolist())


def as_data(found: Findings) -> dict[str, Any]:
    """All numbers and warnings, for JSON; `recipes` are sections a recipe accepts under `method`."""
    suggestion = None if found.suggestion is None else {**asdict(found.suggestion), "recipes": sections(found)}
    return {
        "words": [{**asdict(word), "warnings": found.of_word(word)} for word in found.words],
        "pairs": [{**asdict(pair), "warnings": pair_warnings(pair)} for pair in found.pairs],
        "together": None if found.together is None else {**asdict(found.together), "warnings": pair_warnings(found.together)},
        "suggestion": suggestion,
        "warnings": found.warnings,
        "tokens_read": found.limit,
        "prompts": found.prompts,
    }


def sections(found: Findings) -> dict[str, dict[str, Any]]:
    """The suggested `method` sections by form; empty without a suggestion."""
    if found.suggestion is None:
        return {}
    forms = {"anchored": anchored_section(found.suggestion), "relative": relative_section(found.suggestion)}
    return {name: section for name, section in forms.items() if section is not None}
