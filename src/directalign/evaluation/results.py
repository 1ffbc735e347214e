"""Summaries of per-image metrics: of a model during training, of the candidates of a comparison.

In a comparison, means, paired differences and wins have bootstrap intervals over prompts. A mean is
over the images that have the metric, and two candidates are compared on the samples for which both
have it, so metrics of control prompts, of distances to a base and of prompts with several seeds are
summarised alike.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..metrics import Metric, metric
from ..stats import bootstrap_interval, grouped_mean, holm, rate_interval, resample_groups, win_rate
from ..types import PerSample


def summarise_images(each: Mapping[str, PerSample], prompts: Sequence[str]) -> dict[str, Any]:
    """Of metrics (b,) by name: Wilson's interval {value, low, high, n} of a rate, else the mean.

    `prompts` names the prompt of each image: images of one prompt are not independent.
    Prompt adherence is left out: a run's records have `content`, of which it is a part.
    """
    names = [name for name in each if metric(name).role != "adherence"]
    is_rate = [name for name in names if metric(name).is_rate]
    rates = {name: rate_interval(each[name], prompts).as_dict() for name in is_rate}
    means = {name: float(each[name].double().mean()) for name in names if name not in rates}
    return {**rates, **means}


class Results:
    """Metrics by name, candidate and sample index, and the prompt of every index."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.prompts = {int(row["index"]): str(row["prompt"]) for row in rows}
        self.columns: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for row in rows:
            for name, value in row["numbers"].items():
                self.columns[name, row["model"]][int(row["index"])] = float(value)

    def mean(self, name: str, key: str) -> dict[str, float]:
        """Mean of a candidate's metric with its interval."""
        column = self.columns[name, key]
        return grouped_mean([*column.values()], self._groups(column)).as_dict()

    def compare(
        self, a: str, b: str, about: Metric
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The difference b − a and b's wins ({} without direction); None without shared samples."""
        first, second = (self.columns.get((about.name, key), {}) for key in (a, b))
        shared = [index for index in first if index in second]
        if not shared:
            return None
        x, y = (np.array([column[index] for index in shared]) for column in (first, second))
        groups = self._groups(shared)
        resamples = resample_groups(groups)
        pair = {"a": a, "b": b, "name": about.name}
        difference = {**pair, **bootstrap_interval(y - x, resamples).as_dict()}
        if not about.better:
            return difference, {}
        wins = win_rate(about.better * x, about.better * y, groups, resamples)
        return difference, {**pair, **wins.as_dict()}

    def _groups(self, indices: Iterable[int]) -> tuple[str, ...]:
        """The prompt of each sample, by which samples are resampled."""
        return tuple(self.prompts[index] for index in indices)


def summarise(
    keys: Sequence[str], rows: Sequence[Mapping[str, Any]], about: Mapping[str, Metric]
) -> dict[str, Any]:
    """`summary.json` of a comparison of the candidates `keys`, see docs/evaluation.md.

    `about`: the metrics in the order of the summary; those that no image has are left out.
    """
    results = Results(rows)
    columns = results.columns
    present = {n: each for n, each in about.items() if any((n, key) in columns for key in keys)}
    models = {
        key: {name: results.mean(name, key) for name in present if (name, key) in columns}
        for key in keys
    }
    pairs = [
        found
        for a, b in combinations(keys, 2)
        for each in present.values()
        if (found := results.compare(a, b, each))
    ]
    won = [wins for _, wins in pairs if wins]
    for each, p in zip(won, holm([each["p"] for each in won]), strict=True):
        each["p_holm"] = p
    return {
        "names": {name: each.as_record() for name, each in present.items()},
        "models": models,
        "differences": [difference for difference, _ in pairs],
        "wins": won,
    }
