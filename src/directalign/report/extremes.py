"""The prompts that gained and lost most against the first model, pictures side by side on equal seeds."""

from __future__ import annotations

from ..metrics import Metric, judging
from .album import Album, album
from .comparison_files import Comparison, Model, Shot
from .writing import of_one_image
from collections.abc import Sequence
from dataclasses import dataclass


SHOWN = 3
"""Pairs of each kind."""


@dataclass(frozen=True)
class Pair:
    """One prompt and seed in both models; `numbers` are (label, before, after) in writing."""

    prompt: str
    seed: str
    group: str
    files: tuple[str, str]
    numbers: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Extremes:
    """What one model gained and lost against another, by which numbers, between equals by which, and on how many pairs."""

    model: Model
    first: Model
    by: list[Metric]
    then: Metric | None
    gained: list[Pair]
    lost: list[Pair]
    counts: tuple[int, int, int]
    """Better, worse, equal."""


def extremes(comparison: Comparison) -> list[Extremes]:
    """Of every model against the first; none where no number says which image is better, or none is there for both."""
    found = [_against(comparison, comparison.models[0], model) for model in comparison.models[1:]]
    return [each for each in found if each is not None]


def pictures_of(comparison: Comparison, found: Sequence[Extremes], budget: int) -> Album:
    """The pictures of all pairs, reduced together until they fit."""
    files = [file for each in found for pair in (*each.gained, *each.lost) for file in pair.files]
    return album(comparison.folder, files, comparison.notes, budget)


def _against(comparison: Comparison, first: Model, model: Model) -> Extremes | None:
    before, after = comparison.shots[first.key], comparison.shots[model.key]
    pairs = [(before[index], after[index]) for index in before if index in after]
    by, then = _ranking(comparison, pairs)
    if not by:
        return None
    known = [
        pair for pair in pairs if all(each.name in shot.numbers for each in by for shot in pair)
    ]
    ranked = sorted(((_gain(pair, by, then), pair) for pair in known), key=lambda each: each[0])
    better, worse = sum(gain[0] > 0 for gain, _ in ranked), sum(gain[0] < 0 for gain, _ in ranked)
    asked = [*by, *([then] if then is not None else [])]
    lost = [_pair(*pair, asked) for gain, pair in ranked if gain < (0, 0)]
    gained = [_pair(*pair, asked) for gain, pair in reversed(ranked) if gain > (0, 0)]
    return Extremes(
        model,
        first,
        by,
        then,
        gained[:SHOWN],
        lost[:SHOWN],
        (better, worse, len(ranked) - better - worse),
    )


def _ranking(
    comparison: Comparison, pairs: Sequence[tuple[Shot, Shot]]
) -> tuple[list[Metric], Metric | None]:
    """The numbers that decide, and one that decides between equals, best one that is not yes or no.

    All judges that give shares decide together, or the first number there is.
    """
    known = [
        each
        for each in judging(comparison.metrics.values())
        if any(each.name in one.numbers and each.name in two.numbers for one, two in pairs)
    ]
    if not known:
        return [], None
    together = [each for each in known if each.role == "judge" and each.percent]
    by = together if known[0] in together else known[:1]
    others = [each for each in known if each.role != by[0].role]
    return by, next((each for each in others if not each.percent), others[0] if others else None)


def _gain(
    pair: tuple[Shot, Shot], by: Sequence[Metric], then: Metric | None
) -> tuple[float, float]:
    """What was gained by the numbers that decide, and by the one that decides between equals."""
    before, after = (shot.numbers for shot in pair)
    tie = (
        after[then.name] - before[then.name]
        if then is not None and then.name in before and then.name in after
        else 0.0
    )
    return sum(after[each.name] - before[each.name] for each in by), tie


def _pair(before: Shot, after: Shot, asked: Sequence[Metric]) -> Pair:
    numbers = [(each.label, _text(before, each), _text(after, each)) for each in asked]
    return Pair(after.prompt, after.seed, after.group, (before.file, after.file), numbers)


def _text(shot: Shot, each: Metric) -> str:
    return of_one_image(each, shot.numbers[each.name]) if each.name in shot.numbers else "–"
