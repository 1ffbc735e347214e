"""Settings as rows: those of one run in dotted names, and of several only those that differ."""

from __future__ import annotations

from .files import Record
from .writing import cut
import json
from collections.abc import Mapping, Sequence
from typing import Any


NOT_A_SETTING = ("name",)
MOST_ROWS = 200
ABSENT = "–"
"""For a setting that a model does not have, or that is null."""


def flat(settings: Mapping[str, Any], under: str = "") -> Record:
    """{"train.learning_rate": 1e-4, ...} of nested settings; lists stay whole."""
    found: Record = {}
    for key, value in settings.items():
        name = f"{under}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def differing(models: Sequence[Mapping[str, Any] | None]) -> list[tuple[str, list[str]]]:
    """(name, one text per model) of every setting that is not the same in all models (None: a model without settings).

    A model that has nothing of a section, as a base model has no training, has no say in it.
    """
    told = [flat(settings) if settings else None for settings in models]
    known = [settings for settings in told if settings is not None]
    names = dict.fromkeys(
        name for settings in known for name in settings if name not in NOT_A_SETTING
    )
    rows = [
        (name, [ABSENT if settings is None else text_of(settings, name) for settings in told])
        for name in names
    ]
    return [
        (name, texts)
        for name, texts in rows
        if len(
            {
                text
                for text, settings in zip(texts, told, strict=True)
                if _has_section(settings, name)
            }
        )
        > 1
    ]


def _has_section(settings: Record | None, name: str) -> bool:
    section = name.split(".", 1)[0]
    return settings is not None and any(key.split(".", 1)[0] == section for key in settings)


def text_of(settings: Mapping[str, Any], name: str) -> str:
    """A setting as a recipe would write it, short enough for a table."""
    if name not in settings or settings[name] is None:
        return ABSENT
    value = settings[name]
    if isinstance(value, str):
        return cut(value, 120)
    if isinstance(value, float):
        return f"{value:g}"
    if (
        isinstance(value, list)
        and value
        and all(isinstance(each, (str, int, float)) for each in value)
    ):
        return cut(", ".join(map(str, value)), 120)
    return cut(json.dumps(value, ensure_ascii=False, default=str), 120)
