"""From a template and what stands in it to HTML: everything is escaped, style and scripts stand in the page itself."""

from __future__ import annotations

from . import writing
from .collect import RunFiles
from .files import Record, mapping
import shlex
from pathlib import Path
from typing import Any
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


TEMPLATES = Path(__file__).parent / "templates"
MOST_NOTES = 40
FILTERS = {
    "percent": writing.percent_of,
    "decimal": writing.decimal,
    "shown": writing.shown,
    "span": writing.span,
    "seconds": writing.seconds,
    "cut": writing.cut,
    "counted": writing.counted,
}


def render(template: str, notes: list[str], **context: Any) -> str:
    """The page; of very many notes the first ones and how many there are more."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    style, script = (
        Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "page.js")
    )
    return environment.get_template(template).render(
        style=style, script=script, notes=_few(notes), **context
    )


def repeat_command(run: RunFiles) -> str:
    """The command that repeats a run: its own resolved recipe into a new folder."""
    return f"directalign train {shlex.quote(str(run.folder / 'run.yaml'))} --out {shlex.quote(str(run.folder) + '-again')}"


def environment_of(record: Record) -> list[tuple[str, Any]]:
    """Commit, machine and versions of a summary, as name and value."""
    parts = {
        "commit": record.get("commit"),
        **mapping(record.get("machine")),
        **mapping(record.get("versions")),
    }
    return [(name, writing.cut(value)) for name, value in parts.items() if value is not None]


def _few(notes: list[str]) -> list[str]:
    told = list(dict.fromkeys(writing.cut(note) for note in notes))
    return (
        told
        if len(told) <= MOST_NOTES
        else [*told[:MOST_NOTES], f"... and {len(told) - MOST_NOTES:,} more."]
    )
