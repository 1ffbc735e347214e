"""Percentages of Excellent, Good, Pass and Fail per model, on each axis and overall (SRPO, arXiv 2509.06942, human evaluation).

The paper calls an image excellent overall only if it is on every axis, and leaves the other levels open. Here the overall level is the
lowest of the axes, which agrees with that: an image is no better than its worst side. An image that an annotator has not rated on all
axes has no overall level from them.
"""

from __future__ import annotations

from ..stats import Interval, grouped_rate_interval
from .records import AXES, LEVELS, ArenaError, Axis, Level, Rating, latest_ratings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
import numpy as np


Scale = Literal["overall", Axis]
SCALES: tuple[Scale, ...] = ("overall", *AXES)


class Judgement(NamedTuple):
    """One annotator's level of one image on one scale."""

    annotator: str
    item: int
    model: str
    level: Level


@dataclass(frozen=True)
class Shares:
    """How a model's images were judged on one scale: a share per level, the best first, which sum to 1."""

    model: str
    scale: Scale
    shares: Mapping[Level, Interval]
    counts: Mapping[Level, int]
    items: int
    annotators: int

    @property
    def n(self) -> int:
        """Judgements."""
        return sum(self.counts.values())


def overall(levels: Mapping[Axis, Level]) -> Level:
    """The lowest of an image's four levels.

    Raises: ArenaError where an axis is missing.
    """
    missing = [axis for axis in AXES if axis not in levels]
    if missing:
        raise ArenaError(f"an overall level needs all axes: {', '.join(missing)} not rated")
    return LEVELS[max(LEVELS.index(levels[axis]) for axis in AXES)]


def judgements(ratings: Iterable[Rating], scale: Scale) -> list[Judgement]:
    """The latest rating of each annotator and image on the scale; for `overall` of the images that were rated on all axes."""
    if scale != "overall":
        return [
            Judgement(one.annotator, one.item, one.model, one.level)
            for one in latest_ratings(ratings)
            if one.axis == scale
        ]
    return [
        Judgement(*image, overall(levels))
        for image, levels in _by_image(ratings).items()
        if len(levels) == len(AXES)
    ]


def incomplete(ratings: Iterable[Rating]) -> int:
    """Images, counted per annotator, that lack a rating on some axis and so have no overall level."""
    return sum(len(levels) < len(AXES) for levels in _by_image(ratings).values())


def shares(ratings: Iterable[Rating], scale: Scale, models: Sequence[str]) -> list[Shares]:
    """One `Shares` per model that was judged on the scale, in the order of `models`; intervals by resampling items."""
    found = judgements(ratings, scale)
    by_model = [(model, [one for one in found if one.model == model]) for model in models]
    return [_shares(model, scale, judged) for model, judged in by_model if judged]


def _by_image(ratings: Iterable[Rating]) -> dict[tuple[str, int, str], dict[Axis, Level]]:
    images: dict[tuple[str, int, str], dict[Axis, Level]] = {}
    for one in latest_ratings(ratings):
        images.setdefault((one.annotator, one.item, one.model), {})[one.axis] = one.level
    return images


def _shares(model: str, scale: Scale, judged: Sequence[Judgement]) -> Shares:
    rows = {item: row for row, item in enumerate(sorted({one.item for one in judged}))}
    hits = np.zeros((len(rows), len(LEVELS)))
    for one in judged:
        hits[rows[one.item], LEVELS.index(one.level)] += 1
    answers = hits.sum(1)
    return Shares(
        model,
        scale,
        shares={
            level: grouped_rate_interval(hits[:, column], answers)
            for column, level in enumerate(LEVELS)
        },
        counts={level: int(hits[:, column].sum()) for column, level in enumerate(LEVELS)},
        items=len(rows),
        annotators=len({one.annotator for one in judged}),
    )
