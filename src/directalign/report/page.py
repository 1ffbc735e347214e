"""Render pages: templates with escaping, inline style and script, tables of settings."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..io.text import isolated
from . import format as fmt
from .format import cut, mapping
from .read import Record, RunFiles

NAME = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
MAX_NOTES = 40
MAX_SETTINGS = 200
ABSENT = "–"
"""Text of a setting that is missing or null."""
FUNCTIONS = (fmt.decimal, fmt.format_value, fmt.span, fmt.seconds, cut, fmt.counted)
FUNCTIONS += (fmt.lower_first, fmt.of_one_image, fmt.interval, fmt.p_value, fmt.with_ends)
FILTERS = {"percent": fmt.percent_of, **{each.__name__: each for each in FUNCTIONS}}


def environment(*folders: Path) -> Environment:
    """Templates of folders, the first that has one, with escaping and `FILTERS`."""
    found = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        finalize=lambda value: isolated(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(FILTERS)
    return found


PAGES = environment(TEMPLATES)
"""All templates of the reports."""


CREDIT = (
    "The second toy world's drawings: Fluent 3D (Microsoft, MIT), Noto (Google, Apache-2.0) and "
    "Twemoji (Twitter and contributors, CC BY 4.0), reduced, recoloured and lit; see NOTICE."
)


def credits_of(settings: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """The note on the artists, if a run of these settings has pictures of their drawings."""
    values = (str(value) for each in settings if each for value in flat(each).values())
    return [CREDIT] if any(f"{value}:".startswith("world2:") for value in values) else []


def render(template: str, notes: Sequence[str], **context: Any) -> str:
    """A page as HTML, with the first `MAX_NOTES` notes."""
    files = {"style": TEMPLATES / "style.css", "script": TEMPLATES / "page.js"}
    inline = {name: Markup(file.read_text(encoding="utf-8")) for name, file in files.items()}
    listed = list(dict.fromkeys(cut(note) for note in notes))
    if len(listed) > MAX_NOTES:
        listed[MAX_NOTES:] = [f"... and {len(listed) - MAX_NOTES:,} more."]
    return PAGES.get_template(template).render(**inline, notes=listed, **context)


def repeat_command(run: RunFiles) -> str:
    """The command that repeats a run from its resolved recipe in a new folder."""
    recipe, out = shlex.quote(str(run.folder / "run.yaml")), shlex.quote(f"{run.folder}-again")
    return f"directalign train {recipe} --out {out}"


def environment_of(record: Record) -> list[tuple[str, Any]]:
    """(name, value) of the commit, machine and versions in a summary."""
    parts = {"commit": record.get("commit")}
    parts |= mapping(record.get("machine")) | mapping(record.get("versions"))
    return [(name, cut(value)) for name, value in parts.items() if value is not None]


def flat(settings: Mapping[str, Any], prefix: str = "") -> Record:
    """Nested settings with dotted names: {"train.learning_rate": 1e-4}; lists stay whole."""
    found: Record = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differing_settings(models: Sequence[Mapping[str, Any] | None]) -> list[tuple[str, list[str]]]:
    """(name, one text per model) of the settings that differ; None is a model without settings.

    A model without a whole section (a base model has no training) is not compared in it.
    """
    settings = [flat(each) if each else None for each in models]
    sections = [{name.split(".", 1)[0] for name in each or ()} for each in settings]
    names = dict.fromkeys(name for each in settings for name in each or () if name != "name")
    rows = []
    for name in names:
        texts = [ABSENT if each is None else _setting_text(each.get(name)) for each in settings]
        section = name.split(".", 1)[0]
        compared = {text for text, own in zip(texts, sections, strict=True) if section in own}
        if len(compared) > 1:
            rows.append((name, texts))
    return rows[:MAX_SETTINGS]


def _setting_text(value: Any) -> str:
    """A setting as in a recipe, short enough for a table."""
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and value and {*map(type, value)} <= {str, int, float, bool}:
        value = ", ".join(map(str, value))
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return cut(value, 120)
