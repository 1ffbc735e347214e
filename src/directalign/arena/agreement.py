"""Do the annotators agree? Krippendorff's alpha: 1 − observed disagreement / disagreement expected by chance.

From Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): any number of annotators, missing answers, and a metric that says how
far apart two answers are (nominal: different is different; ordinal: by how many answers lie between; interval: by their difference
squared). 1 is full agreement, 0 what chance would give, below 0 systematic disagreement. Left out: his ratio, polar and circular metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from .intervals import Interval, percentile, resamples
from .levels import Scale, judgements
from .records import LEVELS, Rating, Vote, latest_votes

Metric = Literal["nominal", "ordinal", "interval"]
METRICS: tuple[Metric, ...] = get_args(Metric)

Unit = tuple[int, str] | tuple[int, str, str]
"""What is judged, its item first."""
Answers = Float[np.ndarray, "u a"]
"""Units × annotators, nan where one has not answered."""
Coincidences = Float[np.ndarray, "*n v v"]
"""How often two annotators gave a unit the values (row, column), the values in rising order; weighted so that a unit counts its answers."""


@dataclass(frozen=True)
class Reliability:
    """Answers of a panel: `answers[u, a]`, and the item that unit u belongs to (units of one item are resampled together)."""

    answers: Answers
    items: tuple[int, ...]
    annotators: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """Alpha by metric, None where there is nothing to agree on: fewer than two annotators on every unit, or one answer throughout.

    `interval` is for the ordinal alpha, by resampling items. `units` were answered by two annotators or more.
    """

    alpha: Mapping[Metric, float | None]
    interval: Interval | None
    units: int
    annotators: int


def rated(ratings: Iterable[Rating], scale: Scale) -> Reliability:
    """Units are images (item × model); values 0 for the worst level to 3 for the best."""
    found = judgements(ratings, scale)
    return _reliability([((one.item, one.model), one.annotator, len(LEVELS) - 1.0 - LEVELS.index(one.level)) for one in found])


def voted(votes: Iterable[Vote]) -> Reliability:
    """Units are item × pair; values −1, 0 (tie) and 1 for the model whose name sorts second."""
    found = []
    for vote in latest_votes(votes):
        first, second = sorted((vote.left, vote.right))
        found.append(((vote.item, first, second), vote.annotator, float(vote.winner == second) - float(vote.winner == first)))
    return _reliability(found)


def agreement(panel: Reliability) -> Agreement:
    """Alpha under each metric, and an interval for the ordinal one."""
    table = coincidences(panel.answers)
    known: dict[Metric, float | None] = {metric: _finite(alpha(panel.answers, metric)) for metric in METRICS}
    ordinal, items = known["ordinal"], _by_item(table, panel.items)
    paired = int((np.isfinite(panel.answers).sum(1) >= 2).sum())
    interval = None
    if ordinal is not None and len(items) > 1:
        drawn = np.tensordot(resamples(len(items)), items, axes=1)
        interval = percentile(ordinal, _alpha(drawn, _values(panel.answers), "ordinal"), paired)
    return Agreement(known, interval, units=paired, annotators=len(panel.annotators))


def alpha(answers: Answers, metric: Metric) -> float:
    """Krippendorff's alpha; nan where fewer than two values occur among the units that two annotators answered."""
    return float(_alpha(coincidences(answers).sum(0), _values(answers), metric))


def coincidences(answers: Answers) -> Float[np.ndarray, "u v v"]:
    """Each unit's coincidence matrix; zeros where fewer than two annotators answered."""
    counts = (answers[:, :, None] == _values(answers)).sum(1).astype(float)
    given = counts.sum(1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    return pairs / np.maximum(given - 1, 1)[:, None, None]


def distances(metric: Metric, values: Float[np.ndarray, " v"], margins: Float[np.ndarray, "*n v"]) -> Coincidences:
    """Squared distance of each two values; the ordinal one depends on how often each value is given (`margins`)."""
    if metric == "nominal":
        return np.broadcast_to(1 - np.eye(len(values)), (*margins.shape, len(values)))
    places = np.cumsum(margins, -1) - margins / 2 if metric == "ordinal" else np.broadcast_to(values, margins.shape)
    return (places[..., :, None] - places[..., None, :]) ** 2


def _alpha(table: Coincidences, values: Float[np.ndarray, " v"], metric: Metric) -> Float[np.ndarray, "*n"]:
    """Alpha of each coincidence matrix."""
    margins = table.sum(-1)
    far = distances(metric, values, margins)
    observed = (table * far).sum((-1, -2)) * (margins.sum(-1) - 1)
    expected = (margins[..., :, None] * margins[..., None, :] * far).sum((-1, -2))
    return np.asarray(1 - np.divide(observed, expected, out=np.full(np.shape(expected), np.nan), where=expected > 0))


def _values(answers: Answers) -> Float[np.ndarray, " v"]:
    return np.unique(answers[np.isfinite(answers)])


def _by_item(table: Float[np.ndarray, "u v v"], items: Sequence[int]) -> Float[np.ndarray, "m v v"]:
    """Coincidences summed per item; items without any are left out."""
    names, rows = np.unique(np.asarray(items), return_inverse=True)
    summed = np.zeros((len(names), *table.shape[1:]))
    np.add.at(summed, rows, table)
    return summed[summed.sum((1, 2)) > 0]


def _reliability(found: Sequence[tuple[Unit, str, float]]) -> Reliability:
    units = {unit: row for row, unit in enumerate(dict.fromkeys(unit for unit, _, _ in found))}
    annotators = {name: column for column, name in enumerate(sorted({name for _, name, _ in found}))}
    answers = np.full((len(units), len(annotators)), np.nan)
    for unit, annotator, value in found:
        answers[units[unit], annotators[annotator]] = value
    return Reliability(answers, tuple(unit[0] for unit in units), tuple(annotators))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
