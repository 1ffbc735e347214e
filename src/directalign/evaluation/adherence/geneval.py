"""What an image must show, fact by fact: a number of things, their colour, where they are.

GenEval's metadata (`geneval_facts`) lists objects; each becomes a count, and a colour and a place where it has them. An exclusion of one more
of the same ("two clocks, not three") closes the count from above, any other stands alone. Each fact says itself in words, for questions and records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ...types import PerSample

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
IRREGULAR = {
    "person": "people",
    "mouse": "mice",
    "knife": "knives",
    "sheep": "sheep",
    "scissors": "scissors",
    "skis": "skis",
    "broccoli": "broccoli",
}
HISSING = ("s", "x", "z", "ch", "sh")


def some(count: int, thing: str, limit: str, color: str = "") -> str:
    """ "a bus", "at least two red buses": `limit` goes before numbers, and before one only where it says exactly."""
    named = f"{color} {noun(count, thing)}".strip()
    if count == 1 and limit != "exactly ":
        return f"{'an' if named[0] in 'aeiou' else 'a'} {named}"
    return f"{limit}{NUMBERS[count] if count < len(NUMBERS) else count} {named}"


def noun(count: int, thing: str) -> str:
    """The plural where it is not one; of several words the last changes."""
    before, _, last = thing.rpartition(" ")
    return thing if count == 1 else f"{before} {_plural(last)}".strip()


def _plural(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith(HISSING):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else f"{word}s"


@dataclass(frozen=True)
class Counted:
    """At least `least` of a thing, and fewer than `below` of them; `place` is that of the object in "include", None of an exclusion."""

    thing: str
    least: int
    below: int | None = None
    place: int | None = None

    @property
    def words(self) -> str:
        if self.below is None:
            return some(self.least, self.thing, "at least ")
        if self.below == self.least + 1:
            return (
                some(self.least, self.thing, "exactly ")
                if self.least
                else f"no {noun(1, self.thing)}"
            )
        fewer = f"fewer than {some(self.below, self.thing, '')}"
        return (
            fewer
            if self.least == 0
            else f"{some(self.least, self.thing, 'at least ')}, and {fewer}"
        )


@dataclass(frozen=True)
class Colored:
    """All `count` surest of a thing have the colour."""

    thing: str
    count: int
    color: str
    place: int

    @property
    def words(self) -> str:
        return some(self.count, self.thing, "", self.color)


@dataclass(frozen=True)
class Placed:
    """All `count` surest of a thing stand in the relation to all of the object `target` of "include"."""

    thing: str
    count: int
    relation: str
    target: int
    target_words: str
    place: int

    @property
    def words(self) -> str:
        side = f"to the {self.relation}" if self.relation.endswith(" of") else self.relation
        return f"{some(self.count, self.thing, '')} {side} {self.target_words}"


Fact = Counted | Colored | Placed


def facts_of(metadata: Mapping[str, Any]) -> Iterator[Fact]:
    """The facts of a prompt's checked metadata, each object's count first."""
    include, excluded = (
        metadata["include"],
        {entry["class"]: entry["count"] for entry in metadata["exclude"]},
    )
    for place, entry in enumerate(include):
        thing, count = entry["class"], entry["count"]
        yield Counted(thing, count, excluded.pop(thing, None), place)
        if "color" in entry:
            yield Colored(thing, count, entry["color"], place)
        if "position" in entry:
            relation, target = entry["position"]
            yield Placed(
                thing,
                count,
                relation,
                target,
                some(include[target]["count"], include[target]["class"], ""),
                place,
            )
    for thing, below in excluded.items():
        yield Counted(thing, 0, below)


Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, from the upper left corner."""
MARGIN = 0.1
"""Centres count as apart, on each axis, from this part of the two boxes' added lengths on (GenEval)."""
MOSTLY = 0.5
"""Part of the whole distance that must lie along an axis for a relation: within 60 degrees of it, so that both axes may hold."""


@dataclass(frozen=True)
class Found:
    """One thing in an image; `score` is in [0, 1], `mask` says which pixels it covers where the detector knows."""

    thing: str
    score: float
    box: Box
    mask: Bool[Tensor, "H W"] | None = None


def surest(
    found: Sequence[Found], thing: str, threshold: float, max_overlap: float = 1.0
) -> list[Found]:
    """Those of one name with a score above `threshold`, the surest first, less those that overlap a surer one too much."""
    kept: list[Found] = []
    for each in sorted(
        (each for each in found if each.thing == thing and each.score > threshold),
        key=lambda each: -each.score,
    ):
        if all(overlap(each.box, other.box) <= max_overlap for other in kept):
            kept.append(each)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = _area(a) + _area(b) - shared
    return shared / union if union > 0 else 0.0


def relations(box: Box, other: Box) -> frozenset[str]:
    """Where `box` lies, seen from `other`: some of "left of", "right of", "above", "below", none where their centres are too close.

    The distance of the centres is shortened on each axis by `MARGIN` of both lengths there; what is left must be more than `MOSTLY` of
    the whole distance.
    """
    along = {
        ("left of", "right of"): _apart(box, other, 0),
        ("above", "below"): _apart(box, other, 1),
    }
    distance = math.hypot(*(offset for offset, _ in along.values()))
    return frozenset(
        names[offset > 0]
        for names, (offset, needed) in along.items()
        if distance > 0 and (abs(offset) - needed) / distance > MOSTLY
    )


def _apart(box: Box, other: Box, axis: int) -> tuple[float, float]:
    """How far the centres are apart on an axis, and how far they must be."""
    (low, high), (other_low, other_high) = (
        (box[axis], box[axis + 2]),
        (other[axis], other[axis + 2]),
    )
    return (low + high - other_low - other_high) / 2, MARGIN * (high - low + other_high - other_low)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


ADHERENCE = "adherence"


@dataclass(frozen=True)
class Verdict:
    """One fact in words, whether the image shows it, and what was seen instead or how surely."""

    fact: str
    right: bool
    saw: str


@dataclass(frozen=True)
class Judged:
    """One image: the tag of its prompt's set (None of a free prompt), and a verdict on each fact."""

    tag: str | None
    verdicts: tuple[Verdict, ...]

    @property
    def right(self) -> bool:
        """Whether all facts are."""
        return all(verdict.right for verdict in self.verdicts)

    def record(self) -> list[dict[str, Any]]:
        """For a line of results: [{"fact", "right", "saw"}, ...]."""
        return [asdict(verdict) for verdict in self.verdicts]


def numbers(judged: Sequence[Judged]) -> dict[str, PerSample]:
    """`adherence`, 1.0 where all facts of an image are right and else 0.0, and `adherence_<tag>` of each tag that comes up.

    Each is (b,); where an image's prompt has another tag, it is NaN: that image has no such number.
    """
    tags = dict.fromkeys(each.tag for each in judged if each.tag is not None)
    found = {ADHERENCE: torch.tensor([float(each.right) for each in judged])}
    return found | {
        f"{ADHERENCE}_{tag}": torch.tensor(
            [float(each.right) if each.tag == tag else math.nan for each in judged]
        )
        for tag in tags
    }


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


def judge(
    metadata: Mapping[str, Any], found: Sequence[Found], limits: Limits, read_colors: ReadColors
) -> Judged:
    """Verdicts on one image by its prompt's checked metadata (`geneval_facts.checked_facts`)."""

    def seen(thing: str) -> list[Found]:
        return surest(found, thing, limits.of(metadata["tag"]), limits.max_overlap)

    wanted = [_enough(seen(entry["class"]), entry["count"]) for entry in metadata["include"]]
    return Judged(
        metadata["tag"],
        tuple(_verdict(fact, seen, wanted, read_colors) for fact in facts_of(metadata)),
    )


def _enough(seen: Sequence[Found], count: int) -> Sequence[Found]:
    """The surest so many, none where there are fewer."""
    return seen[:count] if len(seen) >= count else []


def _verdict(
    fact: Fact,
    seen: Callable[[str], list[Found]],
    wanted: Sequence[Sequence[Found]],
    read_colors: ReadColors,
) -> Verdict:
    match fact:
        case Counted():
            number = len(seen(fact.thing))
            return Verdict(
                fact.words,
                fact.least <= number and (fact.below is None or number < fact.below),
                f"{number} found",
            )
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
    return Verdict(
        fact.words, all(fact.relation in held for held in each), ", ".join(dict.fromkeys(told))
    )
