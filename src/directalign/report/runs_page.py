"""The page of several runs: images, metrics and curves side by side, settings that differ.

Runs stand side by side where they were measured on the same pairs and rewards (see `basis`); others
get a section of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..metrics import HELD_OUT, Metric, by_role, metric
from . import run_page
from .basis import alike, common_count, measured_with, on_equal_pairs, prompts_measured
from .charts import STYLES, Figure, IntervalAxis, Scatter, Series, line_chart
from .format import cut, number
from .images import EmbeddedCells, embed_cells, prompts_of, sample_cells
from .page import NAME, credits_of, differing_settings, environment_of, flat, render, repeat_command
from .read import SUMMARY, Record, RunFiles, metric_of, read_json
from .reference_rows import of_base, shared_rows, verdict
from .status import status_of

MAX_ROWS = 24
"""Runs whose images are shown; their numbers and curves are shown of all."""
HUE_STEP = 137.5
"""Degrees between the colours of two runs: no two of any number of runs are the same."""
DASHES = ("none", "7 4", "2 4", "10 3 2 3")


def html(folder: Path, runs: Sequence[RunFiles]) -> str:
    """The whole page; runs whose folder ends in `_long` have a section of images of their own."""
    notes: list[str] = []
    summary = read_json(folder / SUMMARY, notes, optional=True)
    shown = runs[:MAX_ROWS]
    if len(runs) > MAX_ROWS:
        notes.append(f"Images of {len(runs) - MAX_ROWS} of {len(runs)} runs are left out.")
    short = [run for run in shown if not run.key.endswith("_long")]
    long = [run for run in shown if run.key.endswith("_long")]
    cells = [sample_cells(run, most=2) for run in short] + [sample_cells(run, 7) for run in long]
    grids, pixelated = embed_cells(cells)
    styles = styles_of(runs)
    return render(
        "runs.html.j2",
        title=cut(summary.get("title") or "Runs side by side", 120),
        runs=[(run, styles[run.key], status_of(run)) for run in runs],
        colours=colours(styles),
        bases=len({str(flat(run.settings).get("model.path", "")) for run in runs}),
        groups=[_group(group, styles) for group in on_equal_pairs(runs)],
        axis=IntervalAxis(),
        lineups=lineups(list(zip(short, grids, strict=False)), styles),
        pixelated=pixelated,
        differing=differing_settings([run.settings or None for run in runs]),
        long=list(zip(long, grids[len(short) :], strict=True)),
        pages={run.key for run in runs if (run.folder / NAME).is_file()},
        commands=[(run, repeat_command(run)) for run in runs],
        environment=environment_of(next((run.summary for run in runs if run.summary), {})),
        notes=[
            *credits_of([run.settings for run in runs]),
            *notes,
            *(f"{run.key}: {note}" for run in runs for note in run.notes),
        ],
    )


def styles_of(runs: Sequence[RunFiles]) -> dict[str, str]:
    """CSS class by the folder of a run: the usual ones as far as they go, then `r7`, `r8`, ..."""
    return {
        run.key: STYLES[place] if place < len(STYLES) else f"r{place}"
        for place, run in enumerate(runs)
    }


def colours(styles: dict[str, str]) -> Markup:
    """Rules of the classes that the style sheet lacks."""
    rules = []
    for place, style in enumerate(styles.values()):
        if style not in STYLES:
            hue, dash = f"{HUE_STEP * place % 360:.1f}", DASHES[place % len(DASHES)]
            colour = f"light-dark(oklch(.52 .15 {hue}), oklch(.78 .12 {hue}))"
            rules.append(
                f".{style} {{ --c: {colour}; }} .line.{style} {{ stroke-dasharray: {dash}; }}"
            )
    return Markup("\n".join(rules))


def _group(runs: Sequence[RunFiles], styles: dict[str, str]) -> dict[str, Any]:
    """What the page shows of runs on equal pairs."""
    columns, left_out = columns_of(runs)
    main, more = curves_of_runs(runs, styles)
    short = [run for run in runs if not run.key.endswith("_long")]
    count, judge = common_count(runs), run_page.judge_of(runs)
    rows = shared_rows(runs, count)
    ended = [(run, end[1]) for run, end in table(runs) if end]
    says = [(run, verdict(after, of_base(run, rows, judge), judge)) for run, after in ended]
    bases = {str(run.setting("model", "path")) for run, _ in rows}
    of = {path: f", {path}" if len(bases) > 1 else "" for path in bases}
    labels = [f"{row.get('label')}{of[str(run.setting('model', 'path'))]}" for run, row in rows]
    return {
        "references": [
            (cut(label, 120), row) for label, (_, row) in zip(labels, rows, strict=True)
        ],
        "says": [(run, text) for run, text in says if text],
        "prompts": prompts_measured(runs[0]),
        "rows": [(run, styles[run.key], status_of(run), end) for run, end in table(runs)],
        "count": count,
        "columns": columns,
        "left_out": left_out,
        "scatters": runs_scatters(runs, styles),
        "matched": matched(short) if len(short) == 2 else None,
        "curves": main,
        "more": more,
    }


Lineup = tuple[str, str, list[str], list[tuple[str, Any]]]
"""Title, style, images, and (label, value) of what the judge and the colour drift say of them."""


def lineups(
    runs: Sequence[tuple[RunFiles, EmbeddedCells]], styles: dict[str, str]
) -> list[tuple[list[str], list[Lineup]]]:
    """(prompts, rows) of runs whose sample grids have the same prompts.

    The first row is the base model if all have the same one, from the first run's first grid; the
    others are each run's last grid.
    """
    groups: dict[tuple[str, ...], list[tuple[RunFiles, EmbeddedCells]]] = {}
    for run, cells in runs:
        if cells:
            groups.setdefault((*prompts_of(run), str(len(cells[0][1]))), []).append((run, cells))
    found = []
    for group in groups.values():
        count = common_count([run for run, _ in group])
        rows = [
            (cut(run.name), styles[run.key], cells[-1][1], _facts(run, 1, count))
            for run, cells in group
        ]
        bases = {str(run.setting("model", "path")) for run, _ in group}
        step, first = group[0][1][0]
        base = [("Base model", "", first, _facts(group[0][0], 0, count))]
        rows = [*base, *rows] if step == 0 and len(bases) == 1 else rows
        found.append((prompts_of(group[0][0]), rows))
    return found


def _facts(run: RunFiles, end: int, count: int | None) -> list[tuple[str, Any]]:
    """The judge's rate and the colour drift of a run, before (0) or after (1) training, on so many
    samples."""
    judge, record = run_page.judge_of([run]), run.ends.get(count)
    names = [judge.name] if judge else []
    found = [] if record is None else [(n, record[end].get(n)) for n in (*names, "color_drift")]
    return [(metric_of([run], name).label, value) for name, value in found if value is not None]


def table(runs: Sequence[RunFiles]) -> list[tuple[RunFiles, tuple[Record, Record] | None]]:
    """Each run of a group with the metrics before and after, all on `common_count` samples; None of
    a run without both."""
    count = common_count(runs)
    return [(run, run.ends.get(count)) for run in runs]


Column = tuple[str, Metric]
"""Title and metric of a column of the table."""


def columns_of(runs: Sequence[RunFiles]) -> tuple[list[Column], list[Column]]:
    """The main metrics that at least one run has, and those that are left out because the runs
    measured them with different rewards."""
    ends = [end for _, end in table(runs) if end]
    recorded = dict.fromkeys(name for _, after in ends for name in after)
    held_out = [metric_of(runs, name) for name in recorded if name.startswith(HELD_OUT)]
    columns, left_out = list[Column](), list[Column]()
    for title, name in run_page.main_metrics(recorded, held_out):
        having = [run for run, end in table(runs) if end and number(end[1].get(name)) is not None]
        if having:
            is_same = len({measured_with(run, name) for run in having}) == 1
            each = metric_of(runs, name)
            (columns if is_same else left_out).append((title, each))
    return columns, left_out


def runs_scatters(runs: Sequence[RunFiles], styles: dict[str, str]) -> list[tuple[str, Scatter]]:
    """(number of samples, drift against the judge with one line per run) of runs that were measured
    alike; none of a single run."""
    judge, drift = run_page.judge_of(runs), metric("color_drift")
    if judge is None:
        return []
    found = []
    for group in alike(runs, judge.name):
        for same in alike(group, drift.name):
            own = [styles[run.key] for run in same]
            one = run_page.path_scatter(same, judge, drift, styles=own)
            if one.charts and (len(same) > 1 or len(runs) == 1):
                found.append((same[0].num_samples, one))
    return found


def curves_of_runs(
    runs: Sequence[RunFiles], styles: dict[str, str]
) -> tuple[list[Figure], list[Figure]]:
    """Charts of the main metrics, and of the others: one per metric and way of measuring it that at
    least two runs share, with an unlabelled line per run."""
    names = dict.fromkeys(name for run in runs for name in run.measured_names)
    names = [one for one in names if not one.endswith("_neg") and not one.startswith("style_")]
    figures: tuple[list[Figure], list[Figure]] = ([], [])
    for role, metrics in by_role(metric_of(runs, name) for name in names):
        for one in metrics:
            groups = alike(runs, one.name)
            is_more = role in ("drift", "leakage") and one.name != "color_drift"
            for group in (each for each in groups if len(each) > 1):
                curves = [(run, run.measured_curve(one.name)) for run in group]
                lines = [
                    Series("", curve, styles[run.key], notes=[run.name] * len(curve))
                    for run, curve in curves
                ]
                axes = run_page.metric_axes(one)
                chart = line_chart(lines, axes, f"{one.label} by update, {len(group)} runs")
                words = [group[0].num_samples]
                words += [f"the {len(group)} runs that were measured alike"] * (len(groups) > 1)
                caption = f"{one.description} {', '.join(filter(None, words))}".strip()
                figures[is_more].append(Figure(one.label, chart, caption))
    return figures


@dataclass(frozen=True)
class Matched:
    """Runs at one photo rate: (run, drift, content, update at which it was reached)."""

    photo_rate: float
    rows: list[tuple[RunFiles, float, float | None, float]]


def matched(runs: Sequence[RunFiles]) -> Matched | None:
    """Two runs where they first reached the highest photo rate that both reached.

    Values are linear interpolations between evaluations. None if a run was not evaluated, or never
    rose above its start, or if they were evaluated on different pairs.
    """
    curves = [run.measured_curve("photo_rate") for run in runs]
    if len(runs) < 2 or any(len(curve) < 2 for curve in curves):
        return None
    if any(len(alike(runs, name)) > 1 for name in ("photo_rate", "color_drift")):
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
