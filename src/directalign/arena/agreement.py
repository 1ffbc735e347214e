"""Do the annotators agree? Krippendorff's alpha: 1 − observed disagreement / disagreement expected by chance.

Any number of annotators, missing answers, and nominal, ordinal or interval answers (Krippendorff, "Computing Krippendorff's
Alpha-Reliability", 2011), computed by the library `krippendorff`. 1 is full agreement, 0 chance, below 0 systematic disagreement.
"""

from __future__ import annotations

from ..stats import Interval, percentile_interval, resample_counts
from .levels import Scale, judgements
from .records import LEVELS, Rating, Vote, latest_votes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args
import krippendorff
import numpy as np
from jaxtyping import Float, Int


Metric = Literal["nominal", "ordinal", "interval"]
METRICS: tuple[Metric, ...] = get_args(Metric)

Unit = tuple[int, str] | tuple[int, str, str]
"""What is judged, its item first."""
Answers = Float[np.ndarray, "u a"]
"""Units × annotators, nan where one has not answered."""


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
    return _reliability(
        [
            ((one.item, one.model), one.annotator, len(LEVELS) - 1.0 - LEVELS.index(one.level))
            for one in found
        ]
    )


def voted(votes: Iterable[Vote]) -> Reliability:
    """Units are item × pair; values −1, 0 (tie) and 1 for the model whose name sorts second."""
    found = []
    for vote in latest_votes(votes):
        first, second = sorted((vote.left, vote.right))
        found.append(
            (
                (vote.item, first, second),
                vote.annotator,
                float(vote.winner == second) - float(vote.winner == first),
            )
        )
    return _reliability(found)


def agreement(panel: Reliability) -> Agreement:
    """Alpha under each metric, and an interval for the ordinal one."""
    values = _values(panel.answers)
    counts = (panel.answers[:, :, None] == values).sum(1)
    paired = counts.sum(1) >= 2
    known: dict[Metric, float | None] = {metric: alpha(panel.answers, metric) for metric in METRICS}
    items = np.unique(np.asarray(panel.items)[paired], return_inverse=True)[1]
    interval = None
    ordinal = known["ordinal"]
    if ordinal is not None and items.max() > 0:
        drawn = [
            _alpha(np.repeat(counts[paired], times[items], axis=0), values, "ordinal")
            for times in resample_counts(int(items.max()) + 1).astype(int)
        ]
        interval = percentile_interval(ordinal, np.array(drawn), int(paired.sum()))
    return Agreement(known, interval, units=int(paired.sum()), annotators=len(panel.annotators))


def alpha(answers: Answers, metric: Metric) -> float | None:
    """Krippendorff's alpha; None where fewer than two values occur on units with two answers."""
    values = _values(answers)
    found = _alpha((answers[:, :, None] == values).sum(1), values, metric)
    return found if np.isfinite(found) else None


def _alpha(
    counts: Int[np.ndarray, "u v"], values: Float[np.ndarray, " v"], metric: Metric
) -> float:
    """Alpha of the answers (units × values), nan where the library has none."""
    if ((counts.sum(1, keepdims=True) >= 2) & (counts > 0)).any(0).sum() < 2:
        return np.nan
    return float(
        krippendorff.alpha(value_counts=counts, value_domain=values, level_of_measurement=metric)
    )


def _values(answers: Answers) -> Float[np.ndarray, " v"]:
    return np.unique(answers[np.isfinite(answers)])


def _reliability(found: Sequence[tuple[Unit, str, float]]) -> Reliability:
    units = {unit: row for row, unit in enumerate(dict.fromkeys(unit for unit, _, _ in found))}
    annotators = {
        name: column for column, name in enumerate(sorted({name for _, name, _ in found}))
    }
    answers = np.full((len(units), len(annotators)), np.nan)
    for unit, annotator, value in found:
        answers[units[unit], annotators[annotator]] = value
    return Reliability(answers, tuple(unit[0] for unit in units), tuple(annotators))
