"""Format pydantic errors, one line for each: file or override, key, value, rule, remedy."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .run import RunConfig

_SECTION = "write a section: keys, each on its own indented line"
_REMEDIES = {
    "int_type": "write a whole number such as 100, without quotes",
    "float_type": "write a number such as 1e-4, without quotes",
    "bool_type": "write true or false",
    "string_type": "write text, in quotes if it looks like a number",
    "list_type": "write a list: [a, b]",
    "tuple_type": "write a list of numbers: [a, b]",
    "model_type": _SECTION,
    "model_attributes_type": _SECTION,
    "dict_type": "write a section: names of your own, each with its settings",
}

Section = type[BaseModel]


def explain(error: ValidationError, file: str, overrides: Sequence[str] = ()) -> list[str]:
    """Every mistake as "file: key: problem; remedy", unknown keys first.

    Args:
        overrides: dotted keys from the command line; a mistake under one names it, not the file.
    """
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    lines = list[str]()
    for mistake in mistakes:
        path, section, field = locate(mistake["loc"])
        problem = _problem(mistake, path, section, field)
        lines.append(f"{_source(path, file, overrides)}: {problem}")
    return list(dict.fromkeys(lines))


def explain_all(error: ValidationError) -> dict[str, str]:
    """The first mistake of every dotted key; "" is the key of a rule between sections."""
    found: dict[str, str] = {}
    for mistake in error.errors():
        path, section, field = locate(mistake["loc"])
        found.setdefault(path, _problem(mistake, path, section, field))
    return found


def _source(path: str, file: str, overrides: Sequence[str]) -> str:
    """The file, or the override that set the key, a section above it, or a key in it."""
    if not path:  # a rule between sections, whose message names the key
        return file
    if path in overrides:
        return f"--set {path}"
    above = next((key for key in overrides if path.startswith(f"{key}.")), None)
    within = next((key for key in overrides if key.startswith(f"{path}.")), None)
    if above:
        return f"--set {above}: {path}"
    return f"{file} with --set {within}: {path}" if within else f"{file}: {path}"


def _problem(
    mistake: Mapping[str, Any], path: str, section: Section | None, field: FieldInfo | None
) -> str:
    kind, context, given = mistake["type"], mistake.get("ctx", {}), mistake["input"]
    about = " ".join((field.description or "").split()).rstrip(".") if field else ""
    meaning = f" ({about})" if about else ""
    if kind == "extra_forbidden":
        return f"unknown key; {_nearest_key(path, section)}"
    if kind == "missing":
        return f"missing; add it{meaning}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        sections = _sections(field.annotation if field else None)
        key, tags = _tag_key(sections[0]), [_tag(each) for each in sections]
        if kind == "union_tag_not_found":
            return f"missing key {key}; add it, one of {', '.join(tags)}"
        known = f"{key} {context['tag']!r} is none of {', '.join(tags)}"
        return known + _did_you_mean(context["tag"], tags)
    if kind == "literal_error":
        known = list(_literals(field.annotation if field else None))
        rule = f"got {_short(given)}, and it is one of {context['expected']}"
        return rule + _did_you_mean(given, known)
    if kind == "value_error":
        return str(context["error"])
    remedy = f"; {_REMEDIES[kind]}" if kind in _REMEDIES else ""
    rule = mistake["msg"].removeprefix("Input ").removeprefix("String ").removeprefix("List ")
    return f"got {_short(given)}, and it {rule}{remedy}{meaning}"


def locate(loc: Sequence[str | int]) -> tuple[str, Section | None, FieldInfo | None]:
    """Dotted path of a pydantic location, the section of its last key, and its field if it
    exists."""
    path: list[str] = []
    section: Section | None = None
    field: FieldInfo | None = None
    sections: list[Section] = [RunConfig]
    named = False
    for part in loc:
        if named or isinstance(part, int):  # a name that the user chose, or a place in a list
            path.append(str(part))
            named = False
        elif len(sections) > 1:  # pydantic names the alternative of a union: not a key
            sections = [each for each in sections if _tag(each) == part]
        else:
            path.append(part)
            if sections:
                section, field = sections[0], sections[0].model_fields.get(part)
                sections = _sections(field.annotation if field else None)
                named = field is not None and get_origin(field.annotation) is dict
    return ".".join(path), section, field


def _sections(annotation: Any) -> list[Section]:
    """The section classes in an annotation, behind lists, dicts, unions and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for each in get_args(annotation) for section in _sections(each)]


def _literals(annotation: Any) -> Iterator[str]:
    """The texts that an annotation allows."""
    for each in get_args(annotation):
        yield from [each] if isinstance(each, str) else _literals(each)


def _tag_key(section: Section) -> str:
    return "kind" if "kind" in section.model_fields else "name"


def _tag(section: Section) -> str:
    return section.model_fields[_tag_key(section)].default


def _nearest_key(path: str, section: Section | None) -> str:
    """The nearest key in the section, else the same key in another section, else all its keys."""
    parent, _, name = path.rpartition(".")
    known = list(section.model_fields) if section else []
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    elsewhere = [
        key
        for key, _ in all_keys(RunConfig)
        if difflib.get_close_matches(name, [key.rpartition(".")[2]], cutoff=0.85)
    ]
    if path in elsewhere:
        return (
            f"it belongs to another kind of {parent}: remove it, or set {parent}.name to that kind"
        )
    if elsewhere:
        return f"did you mean {elsewhere[0]!r}?"
    return f"keys of {parent or 'a recipe'}: {', '.join(known)}"


def all_keys(section: Section, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every key in a section and below; names in lists are left out."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        for each in _sections(field.annotation):
            yield from all_keys(each, f"{prefix}{name}.")


def _did_you_mean(given: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1) if isinstance(given, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def _short(value: Any) -> str:
    """A value as JSON, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
