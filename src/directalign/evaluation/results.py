"""Summaries of per-image metrics: of a model during training, of the candidates of a comparison.

In a comparison, means, paired differences and wins have bootstrap intervals over prompts. All
numbers of a metric are on the same samples: those for which every candidate that has the metric has
it. So metrics of control prompts, of distances to a base and of prompts with several seeds are
summarised alike.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np

from ..metrics import METRICS, Metric, metric
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


def summarise(
    keys: Sequence[str], rows: Sequence[Mapping[str, Any]], about: Mapping[str, Metric]
) -> dict[str, Any]:
    """`summary.json` of a comparison of the candidates `keys`, see docs/evaluation.md: means,
    differences b − a, and b's wins by metrics with a direction.

    `about`: the metrics in the order of the summary; those that no image has are left out.
    """
    prompts = {int(row["index"]): str(row.get("task", row["prompt"])) for row in rows}
    columns: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for row in rows:
        for name, value in row["numbers"].items():
            columns[name, row["model"]][int(row["index"])] = float(value)
    columns = _on_equal_samples(columns)
    present = {n: each for n, each in about.items() if any((n, key) in columns for key in keys)}
    models: dict[str, dict[str, Any]] = {key: {} for key in keys}
    for key, name in product(keys, present):
        if column := columns.get((name, key)):
            groups = [prompts[index] for index in column]
            answers = name not in METRICS or METRICS[name].is_rate
            models[key][name] = grouped_mean([*column.values()], groups, answers).as_dict()
    differences, won = list[dict[str, Any]](), list[dict[str, Any]]()
    for (a, b), (name, each) in product(combinations(keys, 2), present.items()):
        first, second = (columns.get((name, key), {}) for key in (a, b))
        if not first or not second:
            continue
        x, y = (np.array([column[index] for index in first]) for column in (first, second))
        groups = [prompts[index] for index in first]
        resamples, pair = resample_groups(groups), {"a": a, "b": b, "name": name}
        differences.append({**pair, **bootstrap_interval(y - x, resamples).as_dict()})
        if each.better:
            wins = win_rate(each.better * x, each.better * y, groups, resamples)
            won.append({**pair, **wins.as_dict()})
    for each, p in zip(won, holm([each["p"] for each in won]), strict=True):
        each["p_holm"] = p
    names = {name: each.as_record() for name, each in present.items()}
    return {"names": names, "models": models, "differences": differences, "wins": won}


def _on_equal_samples(
    columns: Mapping[tuple[str, str], Mapping[int, float]],
) -> dict[tuple[str, str], dict[int, float]]:
    """The values by (metric, candidate) and sample, of the samples that all candidates of a metric
    have."""
    shared: dict[str, set[int]] = {}
    for (name, _), column in columns.items():
        shared[name] = shared.get(name, {*column}) & {*column}
    kept = {
        (name, key): {index: value for index, value in column.items() if index in shared[name]}
        for (name, key), column in columns.items()
    }
    return {place: column for place, column in kept.items() if column}
