"""The text of `table1`, computed from its rows: all methods at equal compute, equal reward and equal photo rate, and what the paper's claims come to."""

from __future__ import annotations

from .comparing.matching import Column, Matched, absent, at_common_budget, at_same_level, base_row, level_of_most, summit, table
from .comparing.statistics import paired_over_seeds, ratio_interval
from .running.arms import LONGER, OURS, POLICY_GRADIENTS
from .running.records import Row, arms_of, seeds_of
from .showing.palette import title_of
from .showing.tables import number, with_interval


QUALITY = (
    Column("score_pos", "reward"),
    Column("photo_rate", "photo rate", 0, percent=True),
    Column("content", "content", 0, percent=True),
    Column("color_drift", "colour drift"),
    Column("saturation_drift", "saturation drift", 0, percent=True),
    Column("sharpness_drift", "sharpness drift", 0, percent=True),
    Column("diversity", "diversity"),
)
COST = (Column("call_equivalents", "network calls", 0), Column("seconds", "seconds", 0))
WORK = (Column("step", "updates", 0), Column("learning_rate", "learning rate", 5), Column("seconds", "seconds", 0))


def tell(rows: list[Row]) -> str:
    """Markdown: three tables with a sentence or two each, then our method against the others where it ends."""
    sections = {
        "At matched compute": _at_compute(rows),
        "At matched reward": _at_level(rows, "score_pos", "mean score under the positive phrases"),
        "At matched photo rate": _at_level(rows, "photo_rate", "photo rate"),
        f"Where {title_of(OURS)} ends": _at_our_level(rows),
        "How to read it": [_reading(rows)],
    }
    return "\n\n".join("\n\n".join([f"## {title}", *(part for part in parts if part)]) for title, parts in sections.items())


def _at_compute(rows: list[Row]) -> list[str]:
    amount, found = at_common_budget(rows)
    best = max(found.reached, key=lambda arm: _mean(found, arm, "photo_rate"))
    return [
        f"Every run is read off where it has spent {number(amount, 0)} network calls.",
        table(found, arms_of(rows), (*QUALITY, *WORK), base_row(rows)),
        f"The highest photo rate there is that of {title_of(best)}: {_shown(found, best, 'photo_rate')}, with content at {_shown(found, best, 'content')}.",
    ]


def _at_level(rows: list[Row], key: str, meaning: str) -> list[str]:
    level, titles = level_of_most(rows, key), arms_of(rows)
    if level <= base_row(rows)[key]:
        return [f"Fewer than two thirds of the methods raise the {meaning} above the base model's with every seed: there is no level at which to compare them."]
    found = at_same_level(rows, key, level)
    ranked = sorted((_mean(found, arm, "color_drift"), titles[arm]) for arm in found.reached)
    return [
        f"Every run is read off where its {meaning} first reaches {number(level, 3)}, the highest that two thirds of the methods reach with every seed.",
        table(found, titles, (*QUALITY, *COST), base_row(rows)),
        absent(found, titles, len(seeds_of(rows))),
        f"From the lowest colour drift to the highest: {', '.join(f'{title} {number(drift, 3)}' for drift, title in ranked)}.",
    ]


def _at_our_level(rows: list[Row]) -> list[str]:
    level = summit(rows, OURS, "photo_rate")
    if level <= base_row(rows)["photo_rate"]:
        return [f"{title_of(OURS)} never raises the photo rate above the base model's with every seed."]
    found = at_same_level(rows, "photo_rate", level)
    others = [arm for arm in found.reached if arm != OURS]
    reached = f"so do {', '.join(map(title_of, others))}. {_drift_against(found, others)}" if others else "no other method does."
    costs = [_cost_against(rows, arm) for arm in POLICY_GRADIENTS if arm in arms_of(rows)]
    return [f"{title_of(OURS)} reaches a photo rate of {number(level, 3)} with every seed; {reached}", *costs]


def _drift_against(found: Matched, others: list[str]) -> str:
    """Whose colour drift is the lowest there, and by how much seed for seed."""
    rival = min(others, key=lambda arm: _mean(found, arm, "color_drift"))
    ours, theirs = ([row["color_drift"] for row in found.reached[arm]] for arm in (OURS, rival))
    difference = paired_over_seeds(ours, theirs)
    order = "the lowest of them" if difference["value"] < 0 else f"not the lowest, {title_of(rival)} has no more"
    drifts = f"{_shown(found, OURS, 'color_drift', 3)} against {_shown(found, rival, 'color_drift', 3)} of {title_of(rival)}"
    return f"The colour drift of {title_of(OURS)} is {order}: {drifts}, a difference of {with_interval(difference, 3)} seed for seed."


def _cost_against(rows: list[Row], arm: str) -> str:
    """How many times our calls and seconds another arm takes to the highest photo rate that both reach."""
    level = min(summit(rows, OURS, "photo_rate"), summit(rows, arm, "photo_rate"))
    if level <= base_row(rows)["photo_rate"]:
        return f"{title_of(arm)} and {title_of(OURS)} have no photo rate above the base model's in common."
    found = at_same_level([row for row in rows if row["arm"] in (OURS, arm)], "photo_rate", level)
    calls, seconds = (ratio_interval(*([row[key] for row in found.reached[each]] for each in (arm, OURS))) for key in ("call_equivalents", "seconds"))
    return (
        f"To the highest photo rate that both reach with every seed ({number(level, 3)}), {title_of(arm)} takes {with_interval(calls, 1)} times "
        f"the network calls and {with_interval(seconds, 1)} times the seconds of {title_of(OURS)}."
    )


def _reading(rows: list[Row]) -> str:
    seeds = len(seeds_of(rows))
    return (
        f"Means over {seeds} seed{'s' if seeds > 1 else ''}, with 95 % intervals (Student's t) where there are several. "
        "Network calls are samples through the network, counted once, and twice more where a gradient went back; all methods may spend the same, "
        f"{' and '.join(map(title_of, POLICY_GRADIENTS))} {LONGER} times as much. Between measurements a run is taken as a straight line. "
        "Colour drift is the distance of the mean colour cast from that of real photographs of the same captions; saturation and sharpness drift are "
        "relative to theirs (0 %: as in photographs). Diversity is the mean distance between images of one prompt (RMSE of pixels). "
        "Learning rates are those that `directalign study tuning` chose."
    )


def _mean(found: Matched, arm: str, key: str) -> float:
    interval = found.interval(arm, key)
    assert interval is not None, f"{arm} was measured without {key}"
    return interval["value"]


def _shown(found: Matched, arm: str, key: str, digits: int = 0) -> str:
    return with_interval(found.interval(arm, key), digits, percent=digits == 0)
