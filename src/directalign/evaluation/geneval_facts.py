"""What GenEval's metadata says that an image must show, and must not: one line of `evaluation_metadata.jsonl`, checked.

    {"tag": "position", "include": [{"class": "kite", "count": 1}, {"class": "wine glass", "count": 1, "position": ["above", 0]}], "prompt": ...}
    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], "prompt": ...}

Format: djghosh13/geneval (arXiv 2310.11513). Judging an image by it is elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..types import DirectAlignError

RELATIONS = ("left of", "right of", "above", "below")


def checked_facts(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """{"tag", "include", "exclude"} of one line, each list (exclude may be empty) of {"class", "count", "color"?, "position"?}.

    "position" is [relation, n]: the object stands in that relation (of `RELATIONS`) to the n-th of "include", an earlier one.
    Anything else raises a DirectAlignError that begins with `where`.
    """
    if not isinstance(row.get("tag"), str) or not row["tag"]:
        raise DirectAlignError(f"{where}: tag is {row.get('tag')!r:.60}; GenEval names the kind of a prompt there, such as counting")
    if not row.get("include"):
        raise DirectAlignError(f"{where}: include is missing or empty; GenEval lists there what the image must show")
    return {"tag": row["tag"], "include": _objects(row, "include", where), "exclude": _objects(row, "exclude", where)}


def _objects(row: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    listed = row.get(key, [])
    if not isinstance(listed, list):
        raise DirectAlignError(f"{where}: {key} is {type(listed).__name__}; write a list of objects, each with class and count")
    return [_object(entry, place, f"{where}: {key}[{place}]") for place, entry in enumerate(listed)]


def _object(entry: Any, place: int, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DirectAlignError(f"{where} is {type(entry).__name__}; write an object with class and count")
    if not isinstance(entry.get("class"), str) or not entry["class"]:
        raise DirectAlignError(f"{where}.class is {entry.get('class')!r:.60}; name a kind of thing, such as dog")
    if type(entry.get("count")) is not int or entry["count"] < 1:
        raise DirectAlignError(f"{where}.count is {entry.get('count')!r:.60}; a whole number from 1 is needed")
    if not isinstance(entry.get("color", ""), str):
        raise DirectAlignError(f"{where}.color is {entry['color']!r:.60}; name a colour")
    if "position" in entry and not _is_position(entry["position"], place):
        raise DirectAlignError(f"{where}.position is {entry['position']!r:.60}; write [relation, n]: one of {', '.join(RELATIONS)}, and an earlier object")
    return {name: entry[name] for name in ("class", "count", "color", "position") if name in entry}


def _is_position(value: Any, place: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in RELATIONS and type(value[1]) is int and 0 <= value[1] < place
