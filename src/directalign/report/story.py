"""The numbers in plain words: before and after, and runs compared where they have come equally far.

Nothing here says that a result is good: sentences state what was measured, and a comparison that the data does not allow is not made.
"""

from __future__ import annotations

from ..metrics import HELD_OUT, metric
from .collect import RunFiles
from .files import Record, number
from .writing import seconds, shown
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


FORMS = {
    "absolute": "plain Direct-Align (one score, nothing to compare it with)",
    "relative": "SRPO (the relative reward)",
    "anchored": "SRPO with the anchored reward",
}
RIVALS = {
    "refl": "ReFL",
    "draft": "DRaFT",
    "alignprop": "AlignProp",
    "drtune": "DRTune",
    "leapalign": "LeapAlign",
    "flowbp": "FlowBP",
    "flow_grpo": "Flow-GRPO",
}
RIVAL_FORMS = {
    "absolute": "one score",
    "relative": "the relative reward",
    "anchored": "the anchored reward",
}


@dataclass(frozen=True)
class Change:
    """One number before and after; `better` is +1 where more is better, −1 where less is."""

    title: str
    key: str
    better: int
    before: Any
    after: Any

    @property
    def is_rate(self) -> bool:
        return isinstance(self.after, dict)


def changes(run: RunFiles) -> list[Change]:
    """What the base model's measurement and that of the weights that are left have to say, most telling first; one alone: nothing.

    The weights that are left are the kept ones where the run says so, else those of the last measurement.
    """
    ends = [*run.measured[:1], *(run.keeps[-1:] or run.measured[1:][-1:])]
    if len(ends) < 2:
        return []
    first, last = ends
    known = [
        each
        for each in _telling(last)
        if number(first.get(each[1])) is not None and number(last.get(each[1])) is not None
    ]
    return [Change(title, key, better, first[key], last[key]) for title, key, better in known]


def _telling(measured: Record) -> list[tuple[str, str, int]]:
    """(title, key, better) of the numbers that stand on top of a page; without the world's judge held-out rewards take its place."""
    judged = [("Photo rate", "photo_rate", 1), ("Content right", "content", 1)]
    held_out = (
        []
        if "photo_rate" in measured
        else [metric(key) for key in measured if key.startswith(HELD_OUT)]
    )
    others = [(each.label, each.name, each.better) for each in held_out if each.better > 0][:2]
    return [*judged, *others, ("Colour drift", "color_drift", -1), ("Reward", "reward", 1)]


def align_seconds(run: RunFiles) -> float | None:
    """Seconds spent on updates alone: the summary's figure, or the sum over the steps there are."""
    told = number(run.summary.get("align_seconds"))
    if told is not None:
        return told
    return sum((value for _, value in run.curve("seconds")), 0.0) if run.steps else None


def method_of(run: RunFiles) -> str:
    """What was done, in words: the method and what it asked of the reward."""
    name, form = (
        run.setting("method", "name", default="srpo"),
        run.setting("method", "form", default="relative"),
    )
    if name in RIVALS:
        return f"{RIVALS[name]} ({RIVAL_FORMS.get(form, form)})"
    return FORMS.get(form, "alignment")


def reward_of(section: Mapping[str, Any]) -> str:
    """A recipe's `reward` in words: its kind and where it comes from; of a mixture each member, with its weight unless that is 1."""
    members = section.get("members")
    if isinstance(members, list):
        return f"{section.get('name')} of {', '.join(_member(each) for each in members)}"
    source = next((section[key] for key in ("path", "url", "statistic") if section.get(key)), "")
    return f"{section.get('name', '')} {source}".strip()


def _member(member: Mapping[str, Any]) -> str:
    weight = number(member.get("weight"))
    weighed = "" if weight in (None, 1.0) else f", weight {weight:g}".replace("-", "−")
    return f"{member.get('label')} ({reward_of(member.get('reward') or {})}{weighed})"


def lead(run: RunFiles) -> str:
    """One or two sentences on top of a run's page."""
    method = method_of(run)
    taken = f"{len(run.steps)} update{'s' if len(run.steps) != 1 else ''} of {method}, {seconds(align_seconds(run))}"
    told = [
        f"{change.title.lower()} {shown(change.before)} → {shown(change.after)}"
        for change in changes(run)
    ]
    return (
        f"{taken}: {', '.join(told)}."
        if told
        else f"{taken}. Nothing was measured before and after."
    )


@dataclass(frozen=True)
class Matched:
    """Runs at one photo rate: (run, its drift there, its content there, the update at which it got there)."""

    photo_rate: float
    rows: list[tuple[RunFiles, float, float | None, float]]

    @property
    def ratio(self) -> float | None:
        """Drift of the second over the first."""
        first, second = (row[1] for row in self.rows[:2])
        return second / first if first > 0 else None


def matched(runs: Sequence[RunFiles]) -> Matched | None:
    """Both runs where they first reached the highest photo rate that both reached, read off straight lines between measurements.

    None when a run was not measured, or never rose above where it started: nothing to match then.
    """
    curves = [run.measured_curve("photo_rate") for run in runs]
    if len(runs) < 2 or any(len(curve) < 2 for curve in curves):
        return None
    rate = min(max(value for _, value in curve) for curve in curves)
    if any(rate <= curve[0][1] for curve in curves):
        return None
    rows = []
    for run, curve in zip(runs, curves, strict=True):
        step = _reached(curve, rate)
        drift = _at(run.measured_curve("color_drift"), step)
        if drift is None:
            return None
        rows.append((run, drift, _at(run.measured_curve("content"), step), step))
    return Matched(rate, rows)


def _reached(curve: Sequence[tuple[float, float]], rate: float) -> float:
    """The step at which a curve first reaches `rate`, which it does."""
    for (step, low), (later, high) in pairwise(curve):
        if low < rate <= high:
            return step + (rate - low) / (high - low) * (later - step)
    return curve[0][0]


def _at(curve: Sequence[tuple[float, float]], step: float) -> float | None:
    """A curve at `step`, on straight lines between its points; None outside."""
    for (here, low), (later, high) in pairwise(curve):
        if here <= step <= later:
            return low + (step - here) / (later - here) * (high - low)
    return None


def table(summary: Mapping[str, Any], runs: Sequence[RunFiles]) -> list[tuple[str, str, Record]]:
    """(key, name, numbers) of the base and every run: from the folder's summary, else from the run's last measurement."""
    rows = []
    base = summary.get("base") or (runs[0].measured[0] if runs and runs[0].measured else None)
    if base:
        rows.append(("base", "Base model", base))
    for run in runs:
        numbers = summary.get(run.key) or (run.measured[-1] if run.measured else {})
        rows.append((run.key, run.name, {"align_seconds": align_seconds(run), **numbers}))
    return rows
