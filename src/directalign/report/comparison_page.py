"""The page of a comparison: win rates, images, metrics, groups of prompts, settings."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import Any

from ..io.text import isolated
from ..metrics import ROLES, Metric, by_role, drifting, judging
from ..stats import grouped_mean
from . import charts
from .format import counted, cut, interval, listing, mapping, number, of_one_image, with_ends
from .images import BUDGET, Images, embed, spread
from .page import credits_of, differing_settings, environment_of, render
from .read import Comparison, ImageRecord, Model, Record, read_comparison
from .reference_rows import AS_WELL, BETTER, WORSE, sentence

OFF_TOPIC = "control_prompts"
"""The group of control prompts."""
FULL_AXIS = ("judge", "adherence", "leakage")
"""Roles whose rates are drawn from 0 to 1."""
GROUP_ROLES = ("judge", "adherence", "held_out", "sgp", "trained")
MAIN_ROLES = ("judge", "adherence", "held_out")
"""Roles whose metrics with a direction are shown at once."""
FROM_THE_BASE = "base_"
"""Prefix of distances to the base model; its own distance is 0."""
MAX_JUDGES, MAX_GROUP_METRICS, MAX_GROUPS = 3, 6, 40
MAX_PROMPTS, MAX_IMAGES = 24, 96
"""Prompts and images in the gallery."""
IMAGE_METRICS = 4
"""Metrics beside an image."""
EXTREME_PAIRS = 3


def html(folder: Path) -> str:
    """The whole page."""
    found = read_comparison(folder)
    styles = styles_of(found)
    wins, pairs = win_matrices(found), extremes(found)
    better = [one for one in wins if one[0].better > 0]
    settings = [model.settings for model in found.models]
    labels = [model.label for model in found.models]
    title = f"{len(labels)} models compared"
    if len(labels) in (1, 2):
        title = labels[0] if len(labels) == 1 else f"{labels[1]} against {labels[0]}"
    corrected = any("p_holm" in win for name in found.metrics for win in found.wins(name).values())
    groups = {index: image.group for own in found.images.values() for index, image in own.items()}
    one_scatter = model_scatter(found)
    return render(
        "comparison.html.j2",
        title=title,
        prompts=mapping(found.record.get("prompts")),
        control=sum(group == OFF_TOPIC for group in groups.values()),
        pairs=len(groups),
        models=found.models,
        says=asking(found),
        styles=styles,
        judges=[one for one in better if one is better[0] or one[0].role == "judge"][:MAX_JUDGES],
        axis=charts.IntervalAxis(),
        win_side=win_side,
        gallery=gallery(found, BUDGET * 3 // 5),
        matrices=wins,
        corrected=corrected,
        panels=panels(found),
        scatters=[one_scatter] if one_scatter else [],
        extremes=pairs,
        extreme_images=embed_extremes(found, pairs, BUDGET * 2 // 5),
        groups=group_tables(found),
        differing=differing_settings(settings),
        with_settings=sum(each is not None for each in settings),
        command=cut(found.record.get("command") or "", 2000),
        environment=environment_of(found.record),
        notes=[*credits_of(settings), *found.notes],
    )


def asking(comparison: Comparison) -> list[str]:
    """For each run, whether its base model does as well when it is asked: by the first judge, with
    the phrase that is best, where the interval of the paired difference includes 0."""
    asked = [model for model in comparison.models if model.phrase]
    judge = next(iter(judging(comparison.metrics.values())), None)
    if not asked or judge is None:
        return []
    values = {model.key: comparison.interval(model.key, judge.name) for model in comparison.models}
    found = []
    for run in (model for model in comparison.models if model.kind == "run"):
        own = [one for one in asked if _base_of(one) == _base_of(run)]
        best = max(own, key=lambda one: number(values[one.key]) or 0.0, default=None)
        for each in map(mapping, listing(comparison.summary.get("differences"))):
            pair = each.get("a"), each.get("b")
            if best is None or each.get("name") != judge.name or {*pair} != {run.key, best.key}:
                continue
            _, low, high = with_ends(each)
            low, high = (low, high) if pair[1] == best.key else (-high, -low)
            says = BETTER if low > 0 else WORSE if high < 0 else AS_WELL
            text = sentence(says, judge, values[best.key], values[run.key], best.phrase)
            found.append(f"{run.label}: {text}")
    return found


def _base_of(model: Model) -> Any:
    return mapping(model.settings).get("model.path")


def styles_of(comparison: Comparison) -> dict[str, str]:
    """CSS class by model; the first is the base model."""
    keys = [model.key for model in comparison.models]
    return dict(zip(keys, chain([charts.BASE], cycle(charts.STYLES)), strict=False))


WinMatrix = tuple[Metric, list[Model], dict[tuple[str, str], Record]]
"""A metric, the models with recorded wins, and the wins by keys (a, b): of b against a."""


def win_matrices(comparison: Comparison) -> list[WinMatrix]:
    """One per metric with recorded wins, judges first."""
    found = []
    for _, metrics in by_role(comparison.metrics.values()):
        for each in metrics:
            wins = comparison.wins(each.name)
            seen = {key for pair in wins for key in pair}
            models = [model for model in comparison.models if model.key in seen]
            if len(models) > 1:
                found.append((each, models, wins))
    return found


def win_side(win: Record) -> str:
    """ "for" or "against" if the interval of a win rate excludes one half, else "even"."""
    _, low, high = with_ends(win)
    return "for" if low > 0.5 else "against" if high < 0.5 else "even"


Panel = dict[str, Any]
"""A `metric` of all models: `rows` of (model, interval), their `axis`, and `n` images per model."""


def panels(comparison: Comparison) -> list[tuple[str, str, str, list[Panel], list[Panel]]]:
    """(title, chip, sentence, panels shown at once, panels that are folded) of each role: the first
    have a direction and are of independent measures."""
    found = []
    for role, metrics in by_role(comparison.metrics.values()):
        each = [panel for one in metrics if (panel := _panel(comparison, one)) is not None]
        main = [one for one in each if role in MAIN_ROLES and one["metric"].better]
        if each:
            found.append((*ROLES[role], main, [one for one in each if one not in main]))
    return found


def _panel(comparison: Comparison, metric: Metric) -> Panel | None:
    values = [(model, comparison.interval(model.key, metric.name)) for model in comparison.models]
    values = [(model, value) for model, value in values if number(value) is not None]
    if not values:
        return None
    full = metric.percent and metric.role in FULL_AXIS
    axis = charts.IntervalAxis.around(
        [e for _, value in values for e in with_ends(value)[1:]], full
    )
    n = max(number(mapping(value).get("n")) or 0 for _, value in values)
    return {"metric": metric, "rows": values, "axis": axis, "n": int(n)}


def model_scatter(comparison: Comparison) -> charts.Scatter | None:
    """The models by the first judge and the first drift metric that at least two of them have."""
    metrics = list(comparison.metrics.values())
    judges = judging(metrics)
    judge = next((one for one in judges if len(_points(comparison, one, one)) > 1), None)
    if judge is None:
        return None
    drifts = [*drifting(metrics), *(one for one in metrics if one.name.startswith(FROM_THE_BASE))]
    drift = next((one for one in drifts if len(_points(comparison, judge, one)) > 1), None)
    if drift is None:
        return None
    styles = styles_of(comparison)
    series = [
        charts.Series(cut(model.label, 40), [point], styles[model.key], errors=[errors])
        for model, point, errors in _points(comparison, judge, drift)
    ]
    return charts.scatter(judge, drift, series, "one point per model")


def _points(
    comparison: Comparison, x: Metric, y: Metric
) -> list[tuple[Model, charts.Point, charts.Ends]]:
    found = []
    for model in comparison.models:
        values = []
        for metric in (x, y):
            value = comparison.interval(model.key, metric.name)
            if value is None and model.kind == "base" and metric.name.startswith(FROM_THE_BASE):
                value = 0.0
            values.append(value)
        across, up = map(number, values)
        if across is not None and up is not None:
            errors = (*with_ends(values[0])[1:], *with_ends(values[1])[1:])
            found.append((model, (across, up), errors))
    return found


GroupTable = tuple[Metric, list[tuple[str, str, list[tuple[str, str, str]]]]]
"""A metric by group of prompts: (group, number of pairs, a cell per model).

A cell is (value, interval, share won against the first model).
"""


def group_tables(comparison: Comparison) -> list[GroupTable]:
    """One per metric of quality, judges first; [] if all prompts are of one group."""
    metrics = [
        each
        for role, found in by_role(comparison.metrics.values())
        for each in found
        if role in GROUP_ROLES and each.better > 0
    ]
    tables = [_group_table(comparison, each) for each in metrics[:MAX_GROUP_METRICS]]
    return [table for table in tables if len(table[1]) > 1]


def _group_table(comparison: Comparison, metric: Metric) -> GroupTable:
    shared = comparison.with_metric(metric.name)
    of_models = [shared.get(model.key, {}) for model in comparison.models]
    groups = dict.fromkeys(image.group for images in of_models for image in images.values())
    rows = []
    for group in list(groups)[:MAX_GROUPS]:
        columns = [{i: one for i, one in own.items() if one.group == group} for own in of_models]
        cells = [_group_cell(columns[0], column, metric) for column in columns]
        pairs = counted(max(map(len, columns)), "pair")
        rows.append((group or "without a group", pairs, cells))
    return metric, rows


def _group_cell(
    first: dict[int, ImageRecord], column: dict[int, ImageRecord], metric: Metric
) -> tuple[str, str, str]:
    value, text = ("–", "")
    if column:
        numbers = [image.numbers[metric.name] for image in column.values()]
        mean = grouped_mean(numbers, [image.prompt for image in column.values()])
        value, text = interval(mean.as_dict(), metric.percent)
    pairs = [(first[i], one) for i, one in column.items() if i in first and column is not first]
    if not pairs:
        return value, text, ""
    numbers = [[image.numbers[metric.name] for image in pair] for pair in pairs]
    points = sum((after > before) + (after >= before) for before, after in numbers)
    return value, text, f"wins {100 * points / 2 / len(pairs):.0f}\u00a0%"


def gallery(comparison: Comparison, budget: int) -> dict[str, Any]:
    """At most `MAX_PROMPTS` pairs, as evenly from every group as possible.

    `rows` of (an image with the prompt and seed, a (file, metrics as JSON) per model or None),
    their `groups`, the `count` of pairs in the comparison, and the `images` by file.
    """
    counts = Counter(index for images in comparison.images.values() for index in images)
    least = min(2, len(comparison.models))
    chosen = _chosen(comparison, [i for i, count in sorted(counts.items()) if count >= least])
    metrics = judging(comparison.metrics.values())[:IMAGE_METRICS]
    rows = []
    for index in chosen:
        images = [comparison.images[model.key].get(index) for model in comparison.models]
        cells = [(one.file, _image_metrics(one, metrics)) if one else None for one in images]
        rows.append((_any_image(comparison, index), cells))
    files = [cell[0] for _, cells in rows for cell in cells if cell]
    embedded = embed(comparison.folder, files, comparison.notes, budget)
    rows = [row for row in rows if any(cell and cell[0] in embedded.uris for cell in row[1])]
    if len(counts) > len(rows):
        left_out, pairs = len(counts) - len(rows), counted(len(counts), "pair")
        comparison.notes.append(f"Images of {left_out:,} of {pairs} are left out to save space.")
    groups = list(dict.fromkeys(image.group for image, _ in rows if image.group))
    return {"rows": rows, "groups": groups, "count": len(counts), "images": embedded}


def _chosen(comparison: Comparison, indices: Sequence[int]) -> list[int]:
    """Indices from the groups in turn: first one seed of every prompt, then further seeds."""
    most = max(4, min(MAX_PROMPTS, MAX_IMAGES // max(1, len(comparison.models))))
    first: dict[str, list[int]] = {}
    again: dict[str, list[int]] = {}
    seen: set[tuple[str, str]] = set()
    for index in indices:
        image = _any_image(comparison, index)
        groups = again if (image.group, image.prompt) in seen else first
        seen.add((image.group, image.prompt))
        groups.setdefault(image.group, []).append(index)
    queues = [spread(found, most) + again.get(group, []) for group, found in first.items()]
    longest = max(map(len, queues), default=0)
    in_turn = [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
    return sorted(in_turn[:most])


def _any_image(comparison: Comparison, index: int) -> ImageRecord:
    return next(images[index] for images in comparison.images.values() if index in images)


def _image_metrics(image: ImageRecord, metrics: Sequence[Metric]) -> str:
    found = {
        isolated(each.label): of_one_image(each, image.numbers)
        for each in metrics
        if each.name in image.numbers
    }
    return json.dumps(found)


Pair = tuple[ImageRecord, ImageRecord]
"""The images of a prompt and seed in two models."""
Extremes = dict[str, Any]
"""The pairs that `gained` and `lost` most in `model` against the `first` one.

They are ordered by the sum of the metrics `by`, then by `tie_break`. `counts` are the numbers of
pairs that are better, worse and equal.
"""


def extremes(comparison: Comparison) -> list[Extremes]:
    """Of every model against the first; [] without a metric of quality that both have."""
    found = [_extremes_of(comparison, model) for model in comparison.models[1:]]
    return [each for each in found if each is not None]


def embed_extremes(comparison: Comparison, found: Sequence[Extremes], budget: int) -> Images:
    """The images of all pairs."""
    pairs = [pair for each in found for pair in (*each["gained"], *each["lost"])]
    files = [image.file for pair in pairs for image in pair]
    return embed(comparison.folder, files, comparison.notes, budget)


def _extremes_of(comparison: Comparison, model: Model) -> Extremes | None:
    first = comparison.models[0]
    before, after = comparison.images[first.key], comparison.images[model.key]
    pairs = [(before[index], after[index]) for index in before if index in after]
    metrics = [
        each
        for each in judging(comparison.metrics.values())
        if any(all(each.name in image.numbers for image in pair) for pair in pairs)
    ]
    if not metrics:
        return None
    rates = [each for each in metrics if each.role == "judge" and each.percent]
    by = rates if metrics[0] in rates else metrics[:1]
    others = [each for each in metrics if each.role != by[0].role]
    tie_break = next((each for each in others if not each.percent), others[0] if others else None)

    def gain(pair: Pair) -> tuple[float, float]:
        one, two = (image.numbers for image in pair)
        tie = 0.0
        if tie_break is not None and tie_break.name in one and tie_break.name in two:
            tie = two[tie_break.name] - one[tie_break.name]
        return sum(two[each.name] - one[each.name] for each in by), tie

    complete = [pair for pair in pairs if all(m.name in one.numbers for m in by for one in pair)]
    ranked = sorted(((gain(pair), pair) for pair in complete), key=lambda each: each[0])
    better = sum(gained[0] > 0 for gained, _ in ranked)
    worse = sum(gained[0] < 0 for gained, _ in ranked)
    won = [pair for gained, pair in reversed(ranked) if gained > (0, 0)]
    lost = [pair for gained, pair in ranked if gained < (0, 0)]
    return {
        "model": model,
        "first": first,
        "by": by,
        "tie_break": tie_break,
        "gained": won[:EXTREME_PAIRS],
        "lost": lost[:EXTREME_PAIRS],
        "counts": (better, worse, len(ranked) - better - worse),
    }
