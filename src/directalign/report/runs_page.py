"""A folder of runs side by side: pictures, numbers, curves together, the plane, settings that differ."""

from __future__ import annotations

from . import figures, planes, story, strips
from .collect import RunFiles, read_summary
from .files import Record
from .rendering import environment_of, render, repeat_command
from .settings import MOST_ROWS, differing, flat
from .strips import Film
from .writing import cut
from pathlib import Path


MOST_DRAWN = 8
"""Runs whose pictures and lines are shown; the table names all of them."""
PAGE = "report.html"


def html(folder: Path, runs: list[RunFiles]) -> str:
    """The whole page; a run whose folder ends in `_long` is one that went on for longer than recommended."""
    notes: list[str] = []
    summary = read_summary(folder, notes)
    short, long = (
        [run for run in runs if not run.key.endswith("_long")],
        [run for run in runs if run.key.endswith("_long")],
    )
    drawn = runs[:MOST_DRAWN]
    if len(runs) > MOST_DRAWN:
        notes.append(
            f"{len(runs) - MOST_DRAWN} of {len(runs)} runs are in the table alone, not in the charts and pictures."
        )
    side_by_side = [(run, strips.frames_of(run, most=2)) for run in short[:MOST_DRAWN]]
    went_on = [(run, strips.frames_of(run, most=7)) for run in long[:MOST_DRAWN]]
    frames = [each for _, each in [*side_by_side, *went_on]]
    films = strips.shown(frames)
    rows = differing([run.settings or None for run in drawn])
    return render(
        "runs.html.j2",
        title=cut(summary.get("title") or "Runs side by side", 120),
        runs=runs,
        bases=len({str(flat(run.settings).get("model.path", "")) for run in runs}),
        cards=[(run, story.changes(run), story.align_seconds(run)) for run in short[:MOST_DRAWN]],
        rows=[
            (key, cut(name), numbers, figures.rate_bars(numbers))
            for key, name, numbers in story.table(summary, runs)
        ],
        columns=_columns(
            [(run, film) for (run, _), film in zip(side_by_side, films, strict=False)]
        ),
        pixelated=strips.pixelated(frames),
        prompts=next((found for run in short if (found := strips.prompts_of(run))), []),
        planes=planes.of_runs(drawn),
        matched=story.matched(short[:2]),
        together=figures.together(drawn),
        legend=[
            (cut(run.name), style)
            for run, style in zip(drawn, figures.styled(len(drawn)), strict=True)
        ],
        differing=rows[:MOST_ROWS],
        drawn=drawn,
        long=[
            (run, film) for (run, _), film in zip(went_on, films[len(side_by_side) :], strict=True)
        ],
        commands=[(run, repeat_command(run), (run.folder / PAGE).is_file()) for run in runs],
        environment=environment_of(_first_with_environment(runs)),
        notes=notes + [f"{run.key}: {note}" for run in runs for note in run.notes],
    )


def _first_with_environment(runs: list[RunFiles]) -> Record:
    return next((run.summary for run in runs if run.summary), {})


def _columns(runs: list[tuple[RunFiles, Film]]) -> list[tuple[str, list[str]]]:
    """(title, images) of each column: the base from the first run's first grid, then each run's last grid."""
    filmed = [(run, film) for run, film in runs if film]
    if not filmed:
        return []
    first_step, first = filmed[0][1][0]
    base = [("Base model", first)] if first_step == 0 else []
    return base + [(cut(run.name), film[-1][1]) for run, film in filmed]
