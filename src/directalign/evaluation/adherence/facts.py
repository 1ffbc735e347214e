"""What an image must show, fact by fact: a number of things, their colour, where they are.

GenEval's metadata (`geneval_facts`) lists objects; each becomes a count, and a colour and a place where it has them. An exclusion of one more
of the same ("two clocks, not three") closes the count from above, any other stands alone. Each fact says itself in words, for questions and records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .words import noun, some


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
            return some(self.least, self.thing, "exactly ") if self.least else f"no {noun(1, self.thing)}"
        fewer = f"fewer than {some(self.below, self.thing, '')}"
        return fewer if self.least == 0 else f"{some(self.least, self.thing, 'at least ')}, and {fewer}"


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
    include, excluded = metadata["include"], {entry["class"]: entry["count"] for entry in metadata["exclude"]}
    for place, entry in enumerate(include):
        thing, count = entry["class"], entry["count"]
        yield Counted(thing, count, excluded.pop(thing, None), place)
        if "color" in entry:
            yield Colored(thing, count, entry["color"], place)
        if "position" in entry:
            relation, target = entry["position"]
            yield Placed(thing, count, relation, target, some(include[target]["count"], include[target]["class"], ""), place)
    for thing, below in excluded.items():
        yield Counted(thing, 0, below)
