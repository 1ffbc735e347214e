"""Files as they are found: what is missing, cut short or leads out of its folder becomes a note on the page, not a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
import yaml


Record = dict[str, Any]
MOST_TEXT = 100_000
"""Letters of a settings file that a page takes over."""


def number(value: Any) -> float | None:
    """A finite number, or the value of an interval; None for anything else."""
    if isinstance(value, dict):
        value = value.get("value")
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not abs(value) < float("inf")
    ):
        return None
    return float(value)


def mapping(value: Any) -> Record:
    """The value where it is a mapping, else {}."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """The value where it is a list, else []."""
    return value if isinstance(value, list) else []


def read_text(file: Path, notes: list[str]) -> str:
    """The file's text, "" with a note where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        notes.append(f"{file.name}: {error.strerror}.")
        return ""


def read_json(file: Path, notes: list[str] | None) -> Record:
    """The mapping in a file, {} with a note where there is none; `notes` None: a file that may be absent."""
    if notes is None and not file.exists():
        return {}
    kept = notes if notes is not None else []
    try:
        return mapping(json.loads(read_text(file, kept) or "{}"))
    except (ValueError, RecursionError):
        kept.append(f"{file.name}: cut short or not JSON, left out.")
        return {}


def read_yaml(text: str, name: str, notes: list[str]) -> Record:
    """The mapping in a YAML text."""
    try:
        return mapping(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError):
        notes.append(f"{name}: not YAML, settings left out.")
        return {}


def json_lines(file: Path, notes: list[str]) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line that is JSON."""
    for place, line in enumerate(read_text(file, notes).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            notes.append(f"{file.name}, line {place}: cut short or not JSON, left out.")
            continue
        yield place, value


def inside(folder: Path, name: str) -> Path | None:
    """The file `name` of a folder; None where the name, or a link on the way, leads out of it.

    >>> inside(Path("run"), "../secret.png") is None
    True
    """
    told = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name or told.is_absolute() or ".." in told.parts:
        return None
    try:
        file = (folder / told).resolve()
        return file if file.is_relative_to(folder.resolve()) else None
    except (OSError, RuntimeError):  # a loop of links
        return None
