"""From rows to a folder that can be shown: `results.jsonl`, figures, and a README that says how it was measured.

A folder belongs to one study in one size: a quick result never stands where a full one is looked for.
"""

from __future__ import annotations

from ...io.atomic import write_text
from ...types import DirectAlignError
from .. import Study
from ..running.records import FACTS, Row, seeds_of, write_rows
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


MARK = "study.json"
QUICK = "> Quick size: it shows that the wiring works. No number here says anything about a method."


def claim(out: Path, name: str, quick: bool) -> None:
    """Take `out` for this study in this size.

    Raises: DirectAlignError where another study or size, or anything else, lies there.
    """
    mine = {"study": name, "size": "quick" if quick else "full"}
    mark = out / MARK
    if mark.is_file():
        found = json.loads(mark.read_text(encoding="utf-8"))
        if found != mine:
            raise DirectAlignError(
                f"{out} holds the {found['size']} size of study {found['study']}, not the {mine['size']} size of {name}: choose another --out"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DirectAlignError(f"{out} holds something that is no study: choose another --out, or empty it")
    out.mkdir(parents=True, exist_ok=True)
    write_text(mark, json.dumps(mine) + "\n")


def publish(study: Study, rows: list[Row], out: Path, quick: bool) -> Path:
    """Write the rows, draw the figures, and put text and figures on one page; returns `out/README.md`."""
    write_rows(rows, out / "results.jsonl")
    figures = study.draw(rows, out)
    page = out / "README.md"
    write_text(page, page_of(study, rows, figures, quick))
    return page


def page_of(study: Study, rows: list[Row], figures: Sequence[Path], quick: bool) -> str:
    """The page as Markdown; a quick result says so in its first line."""
    shown = "\n\n".join(f"![{figure.stem}]({figure.name})" for figure in figures)
    command = f"directalign study {study.NAME}{' --quick' if quick else ''}"
    parts = [
        *([QUICK] if quick else []),
        f"# {study.TITLE}",
        study.QUESTION,
        study.tell(rows),
        shown,
        "## How to repeat it",
        f"`{command}` trains and measures everything again; `results.jsonl` holds the rows that this page was written from.",
        facts(rows),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def facts(rows: Sequence[Row]) -> str:
    """Seeds, commits, machines and versions of the rows, each once."""
    found = {key: _distinct(row.get(key) for row in rows) for key in FACTS}
    lines = [f"Seeds: {', '.join(map(str, seeds_of(rows)))}."]
    lines += [f"Commit: {', '.join(str(commit) for commit in found['commit'])}."] if found["commit"] else []
    lines += [f"Machine: {'; '.join(map(_machine, found['machine']))}."] if found["machine"] else []
    lines += [f"Versions: {'; '.join(map(_versions, found['versions']))}."] if found["versions"] else []
    return "\n".join(f"- {line}" for line in lines)


def _distinct(values: Iterable[Any]) -> list[Any]:
    seen: list[Any] = []
    for value in values:
        if value is not None and value not in seen:
            seen.append(value)
    return seen


def _machine(machine: dict[str, Any]) -> str:
    return str(machine["gpu"] or f"{machine['cores']} CPU cores ({machine['processor']}), {machine['threads']} thread(s) of torch")


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
