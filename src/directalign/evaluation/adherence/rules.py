"""GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513) on what a detector found: presence, number, colour and place.

Of each object that a prompt names, the surest so many are looked at; all of them must have its colour, and stand as it says to all of the
other. An object that is not there has neither colour nor place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .facts import Colored, Counted, Fact, Placed, facts_of
from .found import Found, relations, surest
from .verdicts import Judged, Verdict

COUNTING = "counting"
"""The tag of prompts that ask for a number, for which boxes must be surer."""

ReadColors = Callable[[Sequence[Found], str], Sequence[str]]
"""The colour of each of some things of one name, in the same image."""


@dataclass(frozen=True)
class Limits:
    """When a box counts: above the score `threshold` (`counting` where a number is asked), and not too much within a surer one."""

    threshold: float
    counting: float
    max_overlap: float = 1.0

    def of(self, tag: str) -> float:
        return self.counting if tag == COUNTING else self.threshold


def judge(metadata: Mapping[str, Any], found: Sequence[Found], limits: Limits, read_colors: ReadColors) -> Judged:
    """Verdicts on one image by its prompt's checked metadata (`geneval_facts.checked_facts`)."""

    def seen(thing: str) -> list[Found]:
        return surest(found, thing, limits.of(metadata["tag"]), limits.max_overlap)

    wanted = [_enough(seen(entry["class"]), entry["count"]) for entry in metadata["include"]]
    return Judged(metadata["tag"], tuple(_verdict(fact, seen, wanted, read_colors) for fact in facts_of(metadata)))


def _enough(seen: Sequence[Found], count: int) -> Sequence[Found]:
    """The surest so many, none where there are fewer."""
    return seen[:count] if len(seen) >= count else []


def _verdict(fact: Fact, seen: Callable[[str], list[Found]], wanted: Sequence[Sequence[Found]], read_colors: ReadColors) -> Verdict:
    match fact:
        case Counted():
            number = len(seen(fact.thing))
            return Verdict(fact.words, fact.least <= number and (fact.below is None or number < fact.below), f"{number} found")
        case Colored():
            return _colored(fact, wanted[fact.place], read_colors)
        case Placed():
            return _placed(fact, wanted[fact.place], wanted[fact.target])


def _colored(fact: Colored, things: Sequence[Found], read_colors: ReadColors) -> Verdict:
    if not things:
        return Verdict(fact.words, False, "too few found")
    colors = read_colors(things, fact.thing)
    return Verdict(fact.words, all(color == fact.color for color in colors), ", ".join(colors))


def _placed(fact: Placed, things: Sequence[Found], targets: Sequence[Found]) -> Verdict:
    if not things or not targets:
        return Verdict(fact.words, False, "too few found")
    each = [relations(thing.box, target.box) for thing in things for target in targets]
    told = [" and ".join(sorted(held)) or "neither side" for held in each]
    return Verdict(fact.words, all(fact.relation in held for held in each), ", ".join(dict.fromkeys(told)))
