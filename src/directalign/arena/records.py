"""Answers of annotators: a `Rating` per image and axis, or a `Vote` per pair; the latest counts.

This module needs no torch, so that the arena starts at once.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from ..errors import DirectAlignError

Mode = Literal["rate", "vote"]
Axis = Literal["alignment", "realism", "detail", "aesthetics"]
Level = Literal["excellent", "good", "pass", "fail"]

AXES: tuple[Axis, ...] = get_args(Axis)
"""Axes of the human evaluation of SRPO (arXiv 2509.06942)."""
LEVELS: tuple[Level, ...] = get_args(Level)
"""Levels of an axis, best first."""


class ArenaError(DirectAlignError):
    """A mistake of those who run or answer an arena."""


@dataclass(frozen=True)
class Rating:
    """Level that an annotator gave one image (item × model) on one axis.

    `item` is the index of the prompt-seed pair; `at` the time in seconds since 1970, if known;
    `prompt` its text, so that several seeds of one prompt are not taken for independent items.
    """

    annotator: str
    item: int
    model: str
    axis: Axis
    level: Level
    at: float | None = None
    prompt: str | None = None

    @property
    def question(self) -> Hashable:
        """Annotator × item × model × axis."""
        return self.annotator, self.item, self.model, self.axis

    def __post_init__(self) -> None:
        if self.axis not in AXES or self.level not in LEVELS:
            raise ArenaError(
                f"a rating needs an axis of {AXES} and a level of {LEVELS}: got {self}"
            )


@dataclass(frozen=True)
class Vote:
    """Choice of an annotator between the images of two models; `winner` None is a tie."""

    annotator: str
    item: int
    left: str
    right: str
    winner: str | None
    at: float | None = None
    prompt: str | None = None

    @property
    def question(self) -> Hashable:
        """Annotator × item × pair, whatever the sides."""
        return self.annotator, self.item, frozenset((self.left, self.right))

    def __post_init__(self) -> None:
        if self.left == self.right or self.winner not in (self.left, self.right, None):
            raise ArenaError(f"a vote needs two models, one of them or None as winner: got {self}")


AnyAnswer = TypeVar("AnyAnswer", Rating, Vote)


def prompt_of(answer: Rating | Vote) -> Hashable:
    """The prompt of an answer, its item if the text is not known."""
    return answer.item if answer.prompt is None else answer.prompt


def latest(answers: Iterable[AnyAnswer]) -> list[AnyAnswer]:
    """The last answer of each annotator to each question."""
    return list({one.question: one for one in answers}.values())
