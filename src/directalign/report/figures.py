"""Charts that are neither of one run's updates nor a plane: by noise level, before and after, all runs together."""

from __future__ import annotations

from ..metrics import Metric, by_role, metric
from .bars import interval_bar
from .charts import Series, line_chart
from .collect import RunFiles
from .files import Record, number
from .frame import Axes
from .story import Change
from .writing import percent_of, span
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from markupsafe import Markup


BASE = "s1"
STYLES = ("s0", "s2", "s3", "s4", "s5", "s6", "s7")
"""Classes of lines and models; the base model has its own."""
NOT_TOGETHER = ("step", "seconds", "event")


@dataclass(frozen=True)
class Figure:
    """A chart under its title, with what to see in it."""

    title: str
    chart: Markup
    caption: str


def styled(count: int) -> list[str]:
    """The classes of so many lines; they come again when there are more than colours."""
    return [style for _, style in zip(range(count), cycle(STYLES), strict=False)]


def levels(run: RunFiles) -> list[Figure]:
    """Recovery error, gain and reward by noise level, one line per branch."""
    rows = run.levels()
    texts = {
        "recovery_error": (
            "Recovery error",
            "How far the recovered image stands from the clean one. A level that stands out has too large a jump.",
        ),
        "gain": (
            "Gain",
            "The share of the network's residual that reaches the image: above zero denoises, below inverts.",
        ),
        "reward": (
            "Reward",
            "Mean over the run; a level far from the others is off the reward's distribution.",
        ),
    }
    figures = []
    for key, (title, caption) in texts.items():
        lines = [
            _level_line(branch, entries, key, style)
            for (branch, entries), style in zip(rows.items(), cycle(STYLES), strict=False)
        ]
        chart = line_chart(
            lines, Axes(x="noise level σ", y=title.lower()), f"{title} by noise level"
        )
        figures.append(Figure(title, chart, caption))
    return [figure for figure in figures if figure.chart]


def together(runs: Sequence[RunFiles]) -> list[Figure]:
    """What at least two of the runs were measured on, one chart each with a line per run in the colours of `styled`; no labels at the lines."""
    names: dict[str, int] = {}
    for run in runs:
        for name in dict.fromkeys(
            name for record in run.measured for name in record if name not in NOT_TOGETHER
        ):
            names[name] = names.get(name, 0) + bool(run.measured_curve(name))
    shared = [
        metric(name)
        for name, count in names.items()
        if count > 1 and not name.endswith("_neg") and not name.startswith("style_")
    ]
    return [
        figure
        for _, each in by_role(shared)
        for figure in (_one_together(runs, one) for one in each)
        if figure.chart
    ]


def _one_together(runs: Sequence[RunFiles], one: Metric) -> Figure:
    full = one.percent and one.role in ("judge", "adherence", "leakage")
    axes = Axes(
        "update",
        one.label.lower(),
        one.percent,
        y_low=0.0 if full or one.better < 0 else None,
        y_high=1.0 if full else None,
    )
    lines = [
        Series("", run.measured_curve(one.name), style, notes=[run.name] * len(run.measured))
        for run, style in zip(runs, styled(len(runs)), strict=True)
    ]
    return Figure(
        one.label, line_chart(lines, axes, f"{one.label} by update, all runs"), one.description
    )


def change_bar(change: Change) -> Markup:
    """Before and after of a rate on one line, with intervals; nothing for other numbers."""
    if not change.is_rate or not span(change.before) or not span(change.after):
        return Markup("")
    title = f"{change.title}: {percent_of(change.before)} ({span(change.before)}) before, {percent_of(change.after)} ({span(change.after)}) after"
    return interval_bar([_whisker(BASE, change.before), _whisker("s0", change.after)], title)


def rate_bars(numbers: Record) -> dict[str, Markup]:
    """A whisker each for the rates of a table row."""
    known = [key for key in ("photo_rate", "content") if span(numbers.get(key))]
    return {
        key: interval_bar(
            [_whisker("s0", numbers[key])],
            f"{percent_of(numbers[key])}, 95 % interval {span(numbers[key])}",
        )
        for key in known
    }


def _whisker(style: str, value: Record) -> tuple[str, tuple[float, float], float]:
    return style, (value["low"], value["high"]), number(value) or 0.0


def _level_line(branch: str, entries: Sequence[Record], key: str, style: str) -> Series:
    known = [entry for entry in entries if key in entry]
    return Series(
        branch,
        [(entry["sigma"], entry[key]) for entry in known],
        style,
        notes=[f"{entry['n']} samples" for entry in known],
    )
