"""Numbers by group of prompts (its category in the prompt set), with the share of pairs won against the first model."""

from __future__ import annotations

from ..metrics import Metric, by_role
from ..stats import normal_interval, rate_interval
from .comparison_files import Comparison, Model
from .writing import counted, interval
from collections.abc import Sequence
from dataclasses import dataclass


MOST_NUMBERS, MOST_GROUPS = 6, 40
SHOWN_ROLES = ("judge", "adherence", "held_out", "sgp", "trained")


@dataclass(frozen=True)
class GroupTable:
    """One number by group: (group, pairs, a cell per model); a cell is (value, interval, share won against the first model)."""

    metric: Metric
    rows: list[tuple[str, str, list[tuple[str, str, str]]]]


def tables(comparison: Comparison) -> list[GroupTable]:
    """One for each number that says which image is better, judges first; none where the prompts have no two groups."""
    asked = [
        each
        for role, metrics in by_role(comparison.metrics.values())
        if role in SHOWN_ROLES
        for each in metrics
        if each.better > 0
    ]
    return [
        table for each in asked[:MOST_NUMBERS] if len((table := _table(comparison, each)).rows) > 1
    ]


def _table(comparison: Comparison, each: Metric) -> GroupTable:
    groups = dict.fromkeys(
        shot.group
        for shots in comparison.shots.values()
        for shot in shots.values()
        if each.name in shot.numbers
    )
    rows = []
    for group in list(groups)[:MOST_GROUPS]:
        columns = [_column(comparison, model, each, group) for model in comparison.models]
        cells = [_cell(columns[0], column, each) for column in columns]
        rows.append((group or "without a group", counted(max(map(len, columns)), "pair"), cells))
    return GroupTable(each, rows)


def _column(comparison: Comparison, model: Model, each: Metric, group: str) -> dict[int, float]:
    return {
        index: shot.numbers[each.name]
        for index, shot in comparison.shots[model.key].items()
        if shot.group == group and each.name in shot.numbers
    }


def _cell(first: dict[int, float], column: dict[int, float], each: Metric) -> tuple[str, str, str]:
    value, ends = interval(_mean(list(column.values())), each.percent) if column else ("–", "")
    shared = [index for index in column if index in first]
    if column is first or not shared:
        return value, ends, ""
    won = sum(
        (column[index] > first[index]) + 0.5 * (column[index] == first[index]) for index in shared
    )
    return value, ends, f"wins {100 * won / len(shared):.0f}\u00a0%"


def _mean(values: Sequence[float]) -> dict[str, float]:
    """The mean with its 95 % interval over images: Wilson's of answers that are yes or no, else the normal one."""
    if set(values) <= {0.0, 1.0}:
        return rate_interval(values).as_dict()
    return normal_interval(values).as_dict() if len(values) > 1 else {"value": values[0]}
