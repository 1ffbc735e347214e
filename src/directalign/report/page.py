"""`write_page(folder)`: one self-contained HTML file about a run, or about a folder of runs side by side."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import controls, figures, story, strips
from .collect import RunFiles, is_run, read_run, read_summary, run_folders

TEMPLATES = Path(__file__).parent / "templates"
NAME = "report.html"


class NothingToReport(ValueError):
    """A folder without a run; the message says what to give instead."""


def write_page(folder: Path) -> Path:
    """Write `folder/report.html` and return its path.

    A folder with run.yaml or metrics.jsonl is one run; any other is taken for a folder of runs. Errors: NothingToReport when
    neither is there. Whatever else is missing is said on the page.
    """
    runs = [] if is_run(folder) or not folder.is_dir() else [read_run(path) for path in run_folders(folder)]
    if not runs and not is_run(folder):
        raise NothingToReport(f"{folder}: holds no run (run.yaml, metrics.jsonl) and no folder with one; give what directalign train wrote")
    html = _comparison(folder, runs) if runs else _single(read_run(folder))
    file = folder / NAME
    file.write_text(html, encoding="utf-8")
    return file


def _single(run: RunFiles) -> str:
    film = strips.film(run)
    return _render(
        "run.html.j2",
        title=run.name,
        run=run,
        lead=story.lead(run),
        changes=[(change, figures.change_bar(change)) for change in story.changes(run)],
        film=film,
        prompts=strips.prompts_of(run),
        curves=[*figures.curves(run), *controls.curves(run)],
        levels=figures.levels(run),
        facts=_facts(run),
        command=command(run),
        environment=_environment(run),
        notes=run.notes,
    )


def _comparison(folder: Path, runs: list[RunFiles]) -> str:
    notes: list[str] = []
    summary = read_summary(folder, notes)
    short, long = [run for run in runs if not run.key.endswith("_long")], [run for run in runs if run.key.endswith("_long")]
    side_by_side = [(run, strips.film(run, most=2)) for run in short]
    return _render(
        "runs.html.j2",
        title=str(summary.get("title") or "Runs side by side"),
        summary=summary,
        runs=runs,
        cards=[(run, story.changes(run), story.align_seconds(run)) for run in short],
        rows=[(key, name, numbers, figures.rate_bars(numbers)) for key, name, numbers in story.table(summary, runs)],
        columns=_columns(side_by_side),
        prompts=next((found for run in short if (found := strips.prompts_of(run))), []),
        plane=figures.plane(short),
        matched=story.matched(short[:2]),
        long=[(run, strips.film(run, most=7)) for run in long],
        long_curves=figures.long_curves(long),
        commands=[(run, command(run), (run.folder / NAME).is_file()) for run in runs],
        environment=_environment(runs[0]),
        notes=notes + [f"{run.key}: {note}" for run in runs for note in run.notes],
    )


def _columns(runs: list[tuple[RunFiles, list[tuple[int, list[str]]]]]) -> list[tuple[str, list[str]]]:
    """(title, images) of each column: the base from the first run's first grid, then each run's last grid."""
    filmed = [(run, film) for run, film in runs if film]
    if not filmed:
        return []
    first_step, first = filmed[0][1][0]
    base = [("Base model", first)] if first_step == 0 else []
    return base + [(run.name, film[-1][1]) for run, film in filmed]


def command(run: RunFiles) -> str:
    """The command that repeats a run: its own resolved recipe into a new folder."""
    return f"directalign train {shlex.quote(str(run.folder / 'run.yaml'))} --out {shlex.quote(str(run.folder) + '-again')}"


def _facts(run: RunFiles) -> list[tuple[str, Any]]:
    """The settings that matter most, as name and value."""
    words = run.setting("method", "words", "positive", default=[]), run.setting("method", "words", "negative", default=[])
    asked = [
        ("Model", run.setting("model", "path")),
        ("Trained", run.setting("model", "tune")),
        ("Reward model", story.reward_of(_mapping(run.setting("reward")))),
        ("Method", story.method_of(run)),
        ("Form of the reward", run.setting("method", "form")),
        ("Desired words", ", ".join(map(str, words[0]))),
        ("Undesired words", ", ".join(map(str, words[1]))),
        ("Branches", run.setting("method", "branches")),
        ("Sampling steps of a rollout", run.setting("rollout", "num_sampling_steps")),
        ("Learning rate", run.setting("train", "learning_rate")),
        ("Updates", f"{len(run.steps)} of {run.setting('train', 'num_steps', default='?')}"),
        ("Batch", run.setting("data", "batch_size")),
        ("Seed", run.setting("seed")),
    ]
    return [(name, value) for name, value in asked if value not in (None, "")]


def _environment(run: RunFiles) -> list[tuple[str, Any]]:
    parts = {"commit": run.summary.get("commit"), **_mapping(run.summary.get("machine")), **_mapping(run.summary.get("versions"))}
    return [(name, value) for name, value in parts.items() if value is not None]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _render(template: str, **context: Any) -> str:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=story.percent, decimal=story.decimal, shown=story.shown, span=story.span, seconds=story.seconds)
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))
    return environment.get_template(template).render(style=style, script=script, **context)
