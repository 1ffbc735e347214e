"""What annotators leave: one `Rating` per annotator, image and axis, or one `Vote` per annotator and pair; the latest wins.

The server stores them, the mathematics reads lists of them; neither knows the other. No torch in this room: the arena starts at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Axis = Literal["alignment", "realism", "detail", "aesthetics"]
Level = Literal["excellent", "good", "pass", "fail"]

AXES: tuple[Axis, ...] = get_args(Axis)
"""What is asked about an image (SRPO, arXiv 2509.06942, human evaluation)."""
LEVELS: tuple[Level, ...] = get_args(Level)
"""Answers, the best first."""


class ArenaError(ValueError):
    """A mistake the user can mend: one line that names what was given and the remedy.

    The command turns it into the package's DirectAlignError, whose module needs torch.
    """


@dataclass(frozen=True)
class Rating:
    """One annotator's level of one image (item × model) on one axis.

    `item` is the index of the prompt-seed pair, the same for all models. `at` is when the answer was stored, in seconds since 1970;
    None where it is not known.

    Raises: ArenaError for an axis or a level that does not exist.
    """

    annotator: str
    item: int
    model: str
    axis: Axis
    level: Level
    at: float | None = None

    def __post_init__(self) -> None:
        if self.axis not in AXES or self.level not in LEVELS:
            raise ArenaError(f"a rating has an axis of {', '.join(AXES)} and a level of {', '.join(LEVELS)}: got {self.axis!r} and {self.level!r}")


@dataclass(frozen=True)
class Vote:
    """One annotator's choice between the images of two models for one item, as they stood on the screen; `winner` None is a tie.

    Raises: ArenaError for a model against itself or a winner that was not shown.
    """

    annotator: str
    item: int
    left: str
    right: str
    winner: str | None
    at: float | None = None

    def __post_init__(self) -> None:
        if self.left == self.right or self.winner not in (self.left, self.right, None):
            raise ArenaError(f"a vote is between two models and won by one of them or by none: got {self.left!r} and {self.right!r}, won by {self.winner!r}")


def latest_ratings(ratings: Iterable[Rating]) -> list[Rating]:
    """The last rating in order of each annotator × item × model × axis."""
    return list({(one.annotator, one.item, one.model, one.axis): one for one in ratings}.values())


def latest_votes(votes: Iterable[Vote]) -> list[Vote]:
    """The last vote in order of each annotator × item × pair, whichever side the models stood on."""
    return list({(one.annotator, one.item, frozenset((one.left, one.right))): one for one in votes}.values())
