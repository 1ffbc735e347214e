"""GenEval's facts of a prompt (numbers of objects, colours, positions) and verdicts on them.

The metadata (`eval_prompts.checked_facts`) lists objects; each becomes a count, and a colour and a
position where given. An exclusion of the same class ("two clocks, not three") bounds its count from
above, any other is a fact of its own. Each fact has a text, for questions and records.

Rules and thresholds: djghosh13/geneval (arXiv 2310.11513).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ...types import PerSample

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
IRREGULAR = {"person": "people", "mouse": "mice", "knife": "knives"}
IRREGULAR |= {each: each for each in ("sheep", "scissors", "skis", "broccoli")}
SIBILANTS = ("s", "x", "z", "ch", "sh")


def some(count: int, thing: str, limit: str, color: str = "") -> str:
    """ "a bus", "at least two red buses": `limit` precedes numbers, and one only if it is "exactly
    "."""
    named = f"{color} {noun(count, thing)}".strip()
    if count == 1 and limit != "exactly ":
        return f"{'an' if named[0] in 'aeiou' else 'a'} {named}"
    return f"{limit}{NUMBERS[count] if count < len(NUMBERS) else count} {named}"


def noun(count: int, thing: str) -> str:
    """The plural unless `count` is 1; of several words the last one changes."""
    before, _, word = thing.rpartition(" ")
    if count == 1:
        return thing
    if word in IRREGULAR:
        plural = IRREGULAR[word]
    elif word.endswith(SIBILANTS):
        plural = f"{word}es"
    elif word.endswith("y") and word[-2:-1] not in "aeiou":
        plural = f"{word[:-1]}ies"
    else:
        plural = f"{word}s"
    return f"{before} {plural}".strip()


@dataclass(frozen=True)
class Fact:
    """At least `count` of a thing, fewer than `below`. With a `color` or a `relation` to object
    `target`: the `count` most certain of object `place` have it.

    Objects are numbers in "include".
    """

    text: str
    thing: str
    count: int
    below: int | None = None
    color: str | None = None
    relation: str | None = None
    target: int = 0
    place: int = 0


def facts_of(metadata: Mapping[str, Any]) -> Iterator[Fact]:
    """The facts of a prompt's checked metadata, each object's count first."""
    include = metadata["include"]
    excluded = {entry["class"]: entry["count"] for entry in metadata["exclude"]}
    for place, entry in enumerate(include):
        thing, count = entry["class"], entry["count"]
        yield counted(thing, count, excluded.pop(thing, None))
        if color := entry.get("color"):
            yield Fact(some(count, thing, "", color), thing, count, color=color, place=place)
        if "position" in entry:
            relation, target = entry["position"]
            side = f"to the {relation}" if relation.endswith(" of") else relation
            other = some(include[target]["count"], include[target]["class"], "")
            text = f"{some(count, thing, '')} {side} {other}"
            yield Fact(text, thing, count, relation=relation, target=target, place=place)
    for thing, below in excluded.items():
        yield counted(thing, 0, below)


def counted(thing: str, count: int, below: int | None) -> Fact:
    """The fact that there are at least `count` of a thing and fewer than `below`."""
    parts = [some(count, thing, "at least ")] if count else []
    if below == count + 1:
        parts = [some(count, thing, "exactly ") if count else f"no {thing}"]
    elif below is not None:
        parts.append(f"fewer than {some(below, thing, '')}")
    return Fact(", and ".join(parts), thing, count, below)


Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, from the upper left corner."""
MARGIN = 0.1
"""Distance of two centres along an axis, as part of the summed box lengths (GenEval)."""
MIN_COSINE = 0.5
"""Part of the distance that must be along an axis for a relation; two relations may hold."""


@dataclass(frozen=True)
class Found:
    """One thing in an image; `score` is in [0, 1]; `mask` has its pixels if known."""

    thing: str
    score: float
    box: Box
    mask: Bool[Tensor, "H W"] | None = None


def most_certain(
    found: Sequence[Found], thing: str, threshold: float, max_overlap: float = 1.0
) -> list[Found]:
    """Those of one name above `threshold`, by falling score, without overlapping ones."""
    candidates = [each for each in found if each.thing == thing and each.score > threshold]
    chosen: list[Found] = []
    for each in sorted(candidates, key=lambda each: -each.score):
        if all(overlap(each.box, other.box) <= max_overlap for other in chosen):
            chosen.append(each)
    return chosen


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left, 0.0) * max(bottom - top, 0.0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union if union > 0 else 0.0


def relations(box: Box, other: Box) -> frozenset[str]:
    """Those of "left of", "right of", "above" and "below" in which `box` is to `other`.

    The distance of the centres is reduced on each axis by `MARGIN` of both lengths there; the rest
    must exceed `MIN_COSINE` of the whole distance.
    """
    offsets = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    margins = [MARGIN * (box[i + 2] - box[i] + other[i + 2] - other[i]) for i in (0, 1)]
    distance, names = math.hypot(*offsets), (("left of", "right of"), ("above", "below"))
    return frozenset(
        pair[offset > 0]
        for pair, offset, margin in zip(names, offsets, margins, strict=True)
        if distance > 0 and (abs(offset) - margin) / distance > MIN_COSINE
    )


ADHERENCE = "adherence"


@dataclass(frozen=True)
class Verdict:
    """The text of a fact, whether the image shows it, and what was found."""

    fact: str
    right: bool
    saw: str


@dataclass(frozen=True)
class Judged:
    """One image: the tag of its prompt (None of a free prompt) and a verdict on each fact."""

    tag: str | None
    verdicts: tuple[Verdict, ...]

    @property
    def right(self) -> bool:
        """Whether all facts are."""
        return all(verdict.right for verdict in self.verdicts)


def numbers(judged: Sequence[Judged]) -> dict[str, PerSample]:
    """`adherence` (b,), 1 where all facts are right, else 0; and `adherence_<tag>`, else NaN."""
    tags = dict.fromkeys(each.tag for each in judged if each.tag is not None)
    found = {ADHERENCE: [float(each.right) for each in judged]}
    for tag in tags:
        own = [float(each.right) if each.tag == tag else math.nan for each in judged]
        found[f"{ADHERENCE}_{tag}"] = own
    return {name: torch.tensor(values) for name, values in found.items()}


COUNTING = "counting"
"""The tag of prompts that ask for a number, for which the score threshold is higher."""
ReadColors = Callable[[Sequence[Found], str], Sequence[str]]
"""The colour of each of some things of one name, in the same image."""


@dataclass(frozen=True)
class Limits:
    """Least score of a box (`counting` for counting prompts), most overlap with a better one."""

    threshold: float
    counting: float
    max_overlap: float = 1.0

    def of(self, tag: str) -> float:
        return self.counting if tag == COUNTING else self.threshold


def judge(
    metadata: Mapping[str, Any], found: Sequence[Found], limits: Limits, read_colors: ReadColors
) -> Judged:
    """Verdicts on one image by its prompt's checked metadata."""

    def seen(thing: str) -> list[Found]:
        return most_certain(found, thing, limits.of(metadata["tag"]), limits.max_overlap)

    wanted: list[Sequence[Found]] = []
    for entry in metadata["include"]:
        things = seen(entry["class"])
        wanted.append(things[: entry["count"]] if len(things) >= entry["count"] else [])

    def verdict(fact: Fact) -> Verdict:
        things = wanted[fact.place]
        if fact.color is None and fact.relation is None:
            number = len(seen(fact.thing))
            right = fact.count <= number and (fact.below is None or number < fact.below)
            return Verdict(fact.text, right, f"{number} found")
        if not things or (fact.relation is not None and not wanted[fact.target]):
            return Verdict(fact.text, False, "too few found")
        if fact.color is not None:
            colors = read_colors(things, fact.thing)
            right = all(color == fact.color for color in colors)
            return Verdict(fact.text, right, ", ".join(colors))
        pairs = [(thing, target) for thing in things for target in wanted[fact.target]]
        each = [relations(thing.box, target.box) for thing, target in pairs]
        seen_relations = [" and ".join(sorted(held)) or "neither side" for held in each]
        right = all(fact.relation in held for held in each)
        return Verdict(fact.text, right, ", ".join(dict.fromkeys(seen_relations)))

    return Judged(metadata["tag"], tuple(verdict(fact) for fact in facts_of(metadata)))
