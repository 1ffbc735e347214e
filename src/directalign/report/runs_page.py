"""The page of several runs: images, metrics and curves side by side, settings that differ."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from ..metrics import by_role, metric
from . import run_page
from .charts import STYLES, Figure, IntervalAxis, Scatter, Series, line_chart
from .format import cut
from .images import EmbeddedCells, embed_cells, prompts_of, sample_cells
from .page import NAME, differing_settings, environment_of, flat, render, repeat_command
from .read import SUMMARY, Record, RunFiles, metric_of, read_json

MAX_DRAWN = 8
"""Runs in charts and images; the table has all of them."""


def html(folder: Path, runs: Sequence[RunFiles]) -> str:
    """The whole page; runs whose folder ends in `_long` have a section of their own."""
    notes: list[str] = []
    summary = read_json(folder / SUMMARY, notes)
    drawn = runs[:MAX_DRAWN]
    if len(runs) > MAX_DRAWN:
        left_out = len(runs) - MAX_DRAWN
        notes.append(f"{left_out} of {len(runs)} runs are only in the table.")
    short = [run for run in runs if not run.key.endswith("_long")]
    long = [run for run in runs if run.key.endswith("_long")][:MAX_DRAWN]
    cells = [sample_cells(run, most=2) for run in short[:MAX_DRAWN]]
    cells += [sample_cells(run, most=7) for run in long]
    grids, pixelated = embed_cells(cells)
    bases = {str(flat(run.settings).get("model.path", "")) for run in runs}
    return render(
        "runs.html.j2",
        title=cut(summary.get("title") or "Runs side by side", 120),
        runs=runs,
        bases=len(bases),
        cards=[(run, run_page.changes(run)) for run in short[:MAX_DRAWN]],
        rows=table(summary, runs),
        axis=IntervalAxis(),
        columns=_columns(list(zip(short, grids, strict=False))[:MAX_DRAWN]),
        pixelated=pixelated,
        prompts=next((found for run in short if (found := prompts_of(run))), []),
        scatters=runs_scatters(drawn),
        matched=matched(short[:2]),
        curves=curves_of_runs(drawn),
        legend=list(zip([cut(run.name) for run in drawn], cycle(STYLES), strict=False)),
        differing=differing_settings([run.settings or None for run in drawn]),
        drawn=drawn,
        long=list(zip(long, grids[len(cells) - len(long) :], strict=True)),
        commands=[(run, repeat_command(run), (run.folder / NAME).is_file()) for run in runs],
        environment=environment_of(next((run.summary for run in runs if run.summary), {})),
        notes=notes + [f"{run.key}: {note}" for run in runs for note in run.notes],
    )


def _columns(runs: Sequence[tuple[RunFiles, EmbeddedCells]]) -> list[tuple[str, list[str]]]:
    """(title, images): the base model from the first run's first grid, each run's last grid."""
    found = [(cut(run.name), cells[-1][1]) for run, cells in runs if cells]
    first = next((cells[0] for _, cells in runs if cells), None)
    return [("Base model", first[1]), *found] if first and first[0] == 0 else found


def table(summary: Mapping[str, Any], runs: Sequence[RunFiles]) -> list[tuple[str, str, Record]]:
    """(key, name, metrics) of the base model and of each run.

    Metrics come from the folder's summary.json, else from the run's last evaluation; on the samples
    that all evaluations have where those of one row have more than those of another.
    """
    rows, evaluated = [], [run for run in runs if run.measured]
    ends = [*(run.measured[0] for run in evaluated[:1]), *(run.measured[-1] for run in evaluated)]
    is_equal = len({"during" in end for end in ends}) < 2

    def at(run: RunFiles, place: int) -> Record:
        records = run.measured if is_equal else run.comparable
        return records[place] if records else {}

    base = summary.get("base") or (at(runs[0], 0) if runs else None)
    if base:
        rows.append(("base", "Base model", base))
    for run in runs:
        numbers = summary.get(run.key) or at(run, -1)
        rows.append((run.key, run.name, {"align_seconds": run.align_seconds, **numbers}))
    return rows


def runs_scatters(runs: Sequence[RunFiles]) -> list[Scatter]:
    """Colour drift against the judge, one line per run; [] if it was not measured."""
    judge = run_page.judge_of(runs)
    found = [run_page.path_scatter(runs, judge, metric("color_drift"))] if judge else []
    return [one for one in found if one.charts]


def curves_of_runs(runs: Sequence[RunFiles]) -> list[Figure]:
    """One chart per metric that at least two runs have, one unlabelled line per run."""
    counts = Counter(
        name for run in runs for name in run.measured_names if run.measured_curve(name)
    )
    shared = [name for name, count in counts.items() if count > 1]
    shared = [one for one in shared if not one.endswith("_neg") and not one.startswith("style_")]
    figures = []
    for _, metrics in by_role(metric_of(runs, name) for name in shared):
        for one in metrics:
            lines = [
                Series(
                    "", run.measured_curve(one.name), style, notes=[run.name] * len(run.measured)
                )
                for run, style in zip(runs, cycle(STYLES), strict=False)
            ]
            chart = line_chart(lines, run_page.metric_axes(one), f"{one.label} by update, all runs")
            figures.append(Figure(one.label, chart, one.description))
    return [figure for figure in figures if figure.chart]


@dataclass(frozen=True)
class Matched:
    """Runs at one photo rate: (run, drift, content, update at which it was reached)."""

    photo_rate: float
    rows: list[tuple[RunFiles, float, float | None, float]]


def matched(runs: Sequence[RunFiles]) -> Matched | None:
    """Two runs where they first reached the highest photo rate that both reached.

    Values are linear interpolations between evaluations. None if a run was not evaluated, or never
    rose above its start.
    """
    curves = [run.measured_curve("photo_rate") for run in runs]
    if len(runs) < 2 or any(len(curve) < 2 for curve in curves):
        return None
    rate = min(max(value for _, value in curve) for curve in curves)
    if any(rate <= curve[0][1] for curve in curves):
        return None
    rows = []
    for run, curve in zip(runs, curves, strict=True):
        step = _interpolate([(value, step) for step, value in curve], rate)
        drift = None if step is None else _interpolate(run.measured_curve("color_drift"), step)
        if step is None or drift is None:
            return None
        rows.append((run, drift, _interpolate(run.measured_curve("content"), step), step))
    return Matched(rate, rows)


def _interpolate(curve: Sequence[tuple[float, float]], at: float) -> float | None:
    """Linear interpolation between the first points around `at`; None outside of the curve."""
    for (start, low), (end, high) in pairwise(curve):
        if start <= at <= end:
            return low + (at - start) / (end - start) * (high - low)
    return None
