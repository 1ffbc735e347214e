"""From lines, one per image, to what is said of models: means, paired differences and wins, all with intervals over prompts.

A number counts for the images that have it, and two models are compared on the pairs that both have it for. So numbers of the off-topic
images, of the distance to a base, and of prompts sampled more than once stand in the same lines as all others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from ..metrics import Metric
from ..stats import bootstrap_interval, bootstrap_rate_interval, holm, resample_groups, win_rate

Column = Mapping[int, float]
"""A number of one model by the index of the pair."""
Values = Float[np.ndarray, " n"]


class Results:
    """Numbers by name, model and index, and the prompt of every index."""

    def __init__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self.prompts = {int(line["index"]): str(line["prompt"]) for line in lines}
        self.columns: dict[str, dict[str, dict[int, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for line in lines:
            for name, value in line["numbers"].items():
                self.columns[name][line["model"]][int(line["index"])] = float(value)

    def column(self, name: str, key: str) -> Column:
        """Empty where the model has no such number."""
        return self.columns[name].get(key, {}) if name in self.columns else {}

    def groups(self, indices: Sequence[int]) -> tuple[str, ...]:
        """The prompt of each, by which they are resampled."""
        return tuple(self.prompts[index] for index in indices)


def summarise(
    keys: Sequence[str], lines: Sequence[Mapping[str, Any]], about: Mapping[str, Metric]
) -> dict[str, Any]:
    """`summary.json` of a comparison of the models `keys`, in that order: see docs/evaluation.md for its fields.

    `about` says what each number is, in the order of the summary; a number that no image has is left out.
    """
    results = Results(lines)
    present = {
        name: each for name, each in about.items() if any(results.column(name, key) for key in keys)
    }
    models = {
        key: {name: _mean(results, name, key) for name in present if results.column(name, key)}
        for key in keys
    }
    pairs = [(a, b, name) for a, b in combinations(keys, 2) for name in present]
    differences = [found for a, b, name in pairs if (found := _difference(results, a, b, name))]
    won = [
        found
        for a, b, name in pairs
        if present[name].better and (found := _wins(results, a, b, name, present[name].better))
    ]
    for each, p in zip(won, holm([each["p"] for each in won]), strict=True):
        each["p_holm"] = p
    return {
        "names": {name: each.as_record() for name, each in present.items()},
        "models": models,
        "differences": differences,
        "wins": won,
    }


def _mean(results: Results, name: str, key: str) -> dict[str, float]:
    column = results.column(name, key)
    values, resamples = _values(column, list(column)), resample_groups(results.groups(list(column)))
    interval = bootstrap_rate_interval if np.isin(values, (0, 1)).all() else bootstrap_interval
    return interval(values, resamples).as_dict()


def _difference(results: Results, a: str, b: str, name: str) -> dict[str, Any] | None:
    first, second, indices = _both(results, a, b, name)
    if not indices:
        return None
    found = bootstrap_interval(second - first, resample_groups(results.groups(indices)))
    return {"a": a, "b": b, "name": name, **found.as_dict()}


def _wins(results: Results, a: str, b: str, name: str, better: int) -> dict[str, Any] | None:
    first, second, indices = _both(results, a, b, name)
    if not indices:
        return None
    groups = results.groups(indices)
    found = win_rate(better * first, better * second, groups, resample_groups(groups))
    return {"a": a, "b": b, "name": name, **found.as_dict()}


def _both(results: Results, a: str, b: str, name: str) -> tuple[Values, Values, list[int]]:
    """The number of both models on the pairs that both have it for."""
    first, second = results.column(name, a), results.column(name, b)
    indices = [index for index in first if index in second]
    return _values(first, indices), _values(second, indices), indices


def _values(column: Column, indices: Sequence[int]) -> Values:
    return np.array([column[index] for index in indices], dtype=float)
