"""Judge against drift: the path of a run, or of several, through what it gains and what it loses, with where it stopped and what is kept."""

from __future__ import annotations

from ..metrics import HELD_OUT, Metric, metric
from .charts import Mark, Point, Series, Spot, line_chart
from .collect import RunFiles
from .figures import BASE, styled
from .files import Record, mapping, number
from .frame import NARROW, WIDE, Axes
from .stopping import KEPT, STOP, ending
from .writing import cut
from collections.abc import Sequence
from dataclasses import dataclass
from markupsafe import Markup


SIZES = {"wide": WIDE, "half": (520, 330), "narrow": NARROW}
FOR_WANT_OF_A_JUDGE = ("score_pos", "reward")
DRIFTS = ("color_drift", "content")
"""What stands against the judge where the recipe limits nothing."""
MOST_PLANES = 3
LOW_RATE = 0.8
"""Where the axis of a rate that should stay high begins, unless it fell further."""


@dataclass(frozen=True)
class Plane:
    """Two numbers against each other; `charts` are drawn for the whole width of the page, for half of it, and for narrow screens."""

    judge: Metric
    drift: Metric
    charts: dict[str, Markup]
    limited: bool = False

    @property
    def title(self) -> str:
        return f"{self.drift.label}, by {self.judge.label[:1].lower()}{self.judge.label[1:]}"


def of_run(run: RunFiles) -> list[Plane]:
    """One plane for each number that the recipe's `early_stopping.max_degradation` limits, else for the colour drift and the content; none without a judge."""
    allowed = mapping(run.setting("stop", "drift"))
    judge = _judge([run])
    drifts = [
        metric(name) for name in allowed or DRIFTS if judge is not None and name != judge.name
    ]
    if judge is None:
        return []
    found = [
        _plane([run], judge, drift, _limits(run, drift, number(allowed.get(drift.name))))
        for drift in drifts
    ]
    return [plane for plane in found if plane.charts][:MOST_PLANES]


def of_runs(runs: Sequence[RunFiles]) -> list[Plane]:
    """The colour drift of all runs, one line each."""
    judge = _judge(runs)
    found = [_plane(runs, judge, metric("color_drift"))] if judge is not None else []
    return [plane for plane in found if plane.charts]


def axes_of(judge: Metric, drift: Metric, most: float | None = None) -> Axes:
    """Rates from 0 to 1 on the judge's axis; distances from 0."""
    return Axes(
        x=judge.label.lower(),
        y=drift.label.lower(),
        percent=drift.percent,
        percent_x=judge.percent,
        x_low=0.0 if judge.percent else None,
        x_high=1.0 if judge.percent else None,
        y_low=0.0 if drift.better < 0 else LOW_RATE if drift.percent else None,
        y_high=1.0 if drift.percent else most,
    )


def _judge(runs: Sequence[RunFiles]) -> Metric | None:
    """The number that says how good the weights are: the recipe's, the world's, the first held-out reward, else the trained score."""
    recorded = dict.fromkeys(name for run in runs for record in run.measured for name in record)
    held_out = [name for name in recorded if name.startswith(HELD_OUT) and metric(name).better > 0]
    asked = [run.setting("stop", "judge") for run in runs]
    wanted = [*(str(name) for name in asked if name), "photo_rate", *held_out, *FOR_WANT_OF_A_JUDGE]
    return next((metric(name) for name in wanted if name in recorded), None)


def _plane(
    runs: Sequence[RunFiles], judge: Metric, drift: Metric, limits: Sequence[Mark] = ()
) -> Plane:
    alone = len(runs) == 1
    lines, spots = [], []
    for run, style in zip(runs, [BASE] if alone else styled(len(runs)), strict=True):
        path = _path(run, judge, drift)
        notes = [f"after {step:.0f} updates" for step, _ in path]
        lines.append(
            Series(
                "" if alone else cut(run.name, 40), [point for _, point in path], style, notes=notes
            )
        )
        spots += (
            _spots(run, path, "s0")
            if alone
            else [Spot(spot.point, "", spot.kind, style) for spot in _spots(run, path, style)[1:]]
        )
    most = max((float(mark.x) * 1.04 for mark in limits), default=None)
    title = f"{drift.label} against {judge.label}" + ("" if alone else ", one line per run")
    charts = {
        name: line_chart(lines, axes_of(judge, drift, most), title, True, size, limits, spots)
        for name, size in SIZES.items()
    }
    return Plane(
        judge, drift, {name: chart for name, chart in charts.items() if chart}, bool(limits)
    )


def _path(run: RunFiles, judge: Metric, drift: Metric) -> list[tuple[float, Point]]:
    """(step, point) of every measurement, on the same pairs throughout where the records tell."""
    found = [
        (float(record["step"]), _value(record, judge.name), _value(record, drift.name))
        for record in run.measured
    ]
    return [
        (step, (across, up)) for step, across, up in found if across is not None and up is not None
    ]


def _value(record: Record, name: str) -> float | None:
    """A number as measured on the pairs that are measured during the run: more of them before and after would be another sample."""
    during = number(mapping(record.get("during")).get(name))
    return during if during is not None else number(record.get(name))


def _spots(run: RunFiles, path: Sequence[tuple[float, Point]], style: str) -> list[Spot]:
    """Where a path begins, then what its run kept and where it stopped: at the last measurement that was made by then."""
    if not path:
        return []
    end = ending(run)
    start = Spot(
        path[0][1], "base model" if path[0][0] == 0 else f"update {path[0][0]:.0f}", "start", BASE
    )
    if end is None:
        return [
            start,
            *(
                [Spot(path[-1][1], f"update {path[-1][0]:.0f}", "end", style)]
                if len(path) > 1
                else []
            ),
        ]
    asked = [(KEPT, end.kept, "kept"), (STOP, end.stop, "stopped")]
    if end.stop is not None and end.stop == end.kept:
        asked = [(KEPT, end.kept, "stopped and kept")]
    found = [
        (kind, at, word, [point for step, point in path if step <= at])
        for kind, at, word in asked
        if at is not None
    ]
    return [
        start,
        *(
            Spot(points[-1], f"{word}: update {at:.0f}", kind, kind)
            for kind, at, word, points in found
            if points
        ),
    ]


def _limits(run: RunFiles, drift: Metric, allowed: float | None) -> list[Mark]:
    """How far the recipe lets a number move from the base model's value, as rules across the chart."""
    base = _value(run.measured[0], drift.name) if run.measured else None
    if base is None or allowed is None:
        return []
    ends = {1: [base - allowed], -1: [base + allowed]}.get(
        drift.better, [base - allowed, base + allowed]
    )
    return [Mark(end, "budget", STOP, across=True) for end in ends]
