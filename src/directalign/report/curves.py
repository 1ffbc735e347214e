"""A run's numbers over its updates, by what they are: what judges, what is held out, what is trained on, what drifts, what leaks."""

from __future__ import annotations

from ..metrics import ROLES, STYLE, Metric, by_role, metric
from .charts import Mark, Series, line_chart
from .collect import RunFiles
from .figures import STYLES, Figure
from .frame import Axes
from .stopping import ending
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle


SHARE = "share_"
"""What a member of a mixture adds to its reward is recorded under this and its label."""
POS, NEG = "_pos", "_neg"
SIDES = ("bare prompt", "wanted phrases", "unwanted phrases")
SCORES_OF_REWARDS = {
    "reward": ("score_pos", "score_neg"),
    "off_topic_reward": ("off_topic_score_pos", "off_topic_score_neg"),
}
NOT_DRAWN = ("step", "seconds", "event")
MOST_CHARTS = 60
FULL_AXIS = ("judge", "adherence", "leakage")
"""Roles whose rates are drawn from 0 to 1; others, as the share of dark pixels, where they lie."""


@dataclass(frozen=True)
class Group:
    """Charts of one role, under its title, with the word and the sentence that say what it is."""

    role: str
    title: str
    chip: str
    sentence: str
    figures: list[Figure]


def groups(run: RunFiles) -> list[Group]:
    """Everything that was recorded more than once, one chart each, grouped by role; beyond `MOST_CHARTS` a note."""
    marks = _marks(run)
    names = [each for each in measured_names(run) if not _is_side(each.name)]
    if len(names) > MOST_CHARTS:
        run.notes.append(
            f"{len(names) - MOST_CHARTS} of {len(names)} measured numbers are not drawn."
        )
    drawn = {role: _measured(run, each, marks) for role, each in by_role(names[:MOST_CHARTS])}
    drawn["trained"] = [*drawn.get("trained", []), *_training(run, marks)]
    found = [
        Group(role, *words, [figure for figure in drawn.get(role, []) if figure.chart])
        for role, words in ROLES.items()
    ]
    return [group for group in found if group.figures]


def measured_names(run: RunFiles) -> list[Metric]:
    """Every number of the run's measurements, in the order in which they were recorded."""
    names = dict.fromkeys(
        name for record in run.measured for name in record if name not in NOT_DRAWN
    )
    return [metric(name) for name in names if run.measured_curve(name)]


def _is_side(key: str) -> bool:
    """Whether a number is drawn in the chart of another: a score under the phrases beside that under the bare prompt."""
    return key.endswith((POS, NEG))


def _measured(run: RunFiles, metrics: Sequence[Metric], marks: Sequence[Mark]) -> list[Figure]:
    styles = [each for each in metrics if each.name.startswith(STYLE)]
    figures = [_one(run, each, marks) for each in metrics if each not in styles]
    if styles:
        lines = [
            Series(each.label.removeprefix("Style "), run.measured_curve(each.name), style)
            for each, style in zip(styles, cycle(STYLES), strict=False)
        ]
        axes = Axes(x="update", y="share", percent=True, y_low=0.0, y_high=1.0)
        figures.append(
            Figure(
                "Styles",
                line_chart(lines, axes, "Styles by update", marks=marks),
                "What the style judge takes the images for.",
            )
        )
    return figures


def _one(run: RunFiles, each: Metric, marks: Sequence[Mark]) -> Figure:
    """A number with its interval, and its scores under the phrases where they were measured."""
    full = each.percent and each.role in FULL_AXIS
    axes = Axes(
        "update",
        each.label.lower(),
        each.percent,
        y_low=0.0 if full or each.better < 0 else None,
        y_high=1.0 if full else None,
    )
    sides = SCORES_OF_REWARDS.get(each.name, (f"{each.name}{POS}", f"{each.name}{NEG}"))
    lines = [
        Series(side, run.measured_curve(key), style)
        for side, key, style in zip(SIDES, (each.name, *sides), ("s0", "s2", "s3"), strict=True)
    ]
    known = [line for line in lines if line.points]
    if len(known) == 1:
        known = [Series("", run.measured_curve(each.name), "s0", run.band(each.name))]
    return Figure(
        each.label,
        line_chart(known, axes, f"{each.label} by update", marks=marks),
        each.description,
    )


def _training(run: RunFiles, marks: Sequence[Mark]) -> list[Figure]:
    return [
        _trained(
            run,
            "Reward in training",
            "reward",
            "What is maximised, on the recovered images of each update.",
            marks,
        ),
        _scores(run, marks),
        _trained(run, "Loss", "loss", "Mean over the branches of an update.", marks),
        _trained(
            run,
            "Gradient norm",
            "grad_norm",
            "Before clipping. A jump here comes before a collapse.",
            marks,
        ),
        *_mixture(run, marks),
    ]


def _scores(run: RunFiles, marks: Sequence[Mark]) -> Figure:
    keys = ("metrics.score_plain", "metrics.score_pos", "metrics.score_neg")
    lines = [
        Series(side, run.curve(key), style)
        for side, key, style in zip(SIDES, keys, ("s0", "s2", "s3"), strict=True)
    ]
    said = "Scores of the recovered images. A score under the wanted phrases that rises, peaks and falls is a model that is being ruined."
    return Figure(
        "Scores in training",
        line_chart(lines, Axes("update", "score"), "Scores in training by update", marks=marks),
        said,
    )


def _mixture(run: RunFiles, marks: Sequence[Mark]) -> list[Figure]:
    """Of a mixture of rewards: what each member adds, then each by itself."""
    labels = (
        [
            name.removeprefix(SHARE)
            for name in (run.steps[-1].get("metrics") or {})
            if name.startswith(SHARE)
        ]
        if run.steps
        else []
    )
    if not labels:
        return []
    lines = [
        Series(label, run.curve(f"metrics.{SHARE}{label}"), style)
        for label, style in zip(labels, cycle(STYLES), strict=False)
    ]
    chart = line_chart(
        lines, Axes(x="update", y="share"), "Share of each member by update", marks=marks
    )
    figures = [
        Figure(
            "Shares in the reward",
            chart,
            "What each member adds to what is maximised: weight times reward, over its running spread if so asked.",
        )
    ]
    for label in labels:
        own = f"What is asked of {label}, in its own units, on the recovered images of each update."
        figures.append(_trained(run, f"{label} in training", f"metrics.reward_{label}", own, marks))
    return figures


def _trained(run: RunFiles, title: str, key: str, caption: str, marks: Sequence[Mark]) -> Figure:
    return Figure(
        title,
        line_chart(
            [Series("", run.curve(key))],
            Axes("update", title.lower()),
            f"{title} by update",
            marks=marks,
        ),
        caption,
    )


def _marks(run: RunFiles) -> list[Mark]:
    found = ending(run)
    return found.marks() if found else []
