"""A recipe as a form: fields that the JSON schema of the recipes makes, beside the whole YAML.

The YAML text is what counts; a field shows one key of it and changes that key only. Keys that are
neither a number, a text, a choice nor a list of texts are in the YAML alone.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from ..config.errors import explain_all
from ..config.load import load_text, recipe_mapping, with_value
from ..config.presets import PRESETS, merged
from ..config.run import recipe_schema
from ..errors import DirectAlignError
from ..io.yaml_text import dump_yaml

NAME = "recipe"
"""What errors call the text."""
MAIN = """
    name seed preset model.path model.tune model.lora.rank reward.name reward.path
    method.name method.form method.control_phrases.positive method.control_phrases.negative
    rollout.num_inference_steps rollout.height rollout.width
    data.prompts data.images data.batch_size
    train.num_steps train.learning_rate train.save_every train.sample_every
    evaluate.every evaluate.num_samples
"""
"""Keys that are always visible; the others are folded."""
TITLES = {"": "Run", "early_stopping": "Early stopping", "rollout": "Sampling"}
INTEGER, NUMBER, TEXT, CHOICE, LINES = "integer", "number", "text", "choice", "lines"

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One key: `value` is its text in the recipe, "" where it is absent and `default` applies."""

    key: str
    label: str
    kind: str
    value: str
    default: str
    options: list[str]
    help: str

    @property
    def is_main(self) -> bool:
        return self.key in MAIN.split()


@dataclass(frozen=True)
class Section:
    """The fields of a section of the recipe."""

    key: str
    title: str
    fields: list[Field]

    @property
    def folded(self) -> list[Field]:
        return [field for field in self.fields if not field.is_main]


@dataclass(frozen=True)
class Form:
    """`text` with its `sections`; `errors` are by dotted key."""

    text: str
    sections: list[Section]
    errors: dict[str, str]

    @property
    def other_errors(self) -> dict[str, str]:
        """Errors of keys without a field."""
        keys = {field.key for section in self.sections for field in section.fields}
        return {key: error for key, error in self.errors.items() if key not in keys}


_schema = cache(recipe_schema)


def form_of(text: str) -> Form:
    """The form of a recipe's text; without fields if it is no YAML mapping."""
    errors: dict[str, str] = {}
    try:
        load_text(text, NAME)
    except DirectAlignError as error:
        cause = error.__cause__
        known = isinstance(cause, ValidationError)
        errors = explain_all(cause) if known else {"": str(error).removeprefix(f"{NAME}: ")}
    try:
        sections = list(_sections(recipe_mapping(text, NAME)))
    except DirectAlignError:
        return Form(text, [], errors)  # `errors` says why
    return Form(text, sections, errors)


def changed(text: str, changes: Mapping[str, str]) -> str:
    """The recipe's text with other values of some fields; "" removes a key.

    A new choice of a union, such as `method.name`, replaces its section. Keys without a field are
    ignored. Raises: DirectAlignError if the text is no YAML mapping.
    """
    settings = recipe_mapping(text, NAME)
    fields = _by_key(settings)
    for key, value in changes.items():
        if key in fields and fields[key].value != value.strip():
            settings = with_value(settings, key, _parsed(fields[key].kind, value.strip()))
            text, fields = dump_yaml(settings), _by_key(settings)
    return text


def _by_key(settings: dict[str, Any]) -> dict[str, Field]:
    return {field.key: field for section in _sections(settings) for field in section.fields}


def _parsed(kind: str, value: str) -> Any:
    """The value that a field's text stands for; None for an empty one, which removes the key."""
    if not value:
        return None
    if kind == LINES:
        return [line.strip() for line in value.splitlines() if line.strip()]
    if kind == TEXT:
        return value
    number_of = {INTEGER: int, NUMBER: float}.get(kind, json.loads)
    try:
        return number_of(value)
    except ValueError:
        return value  # a choice, or what the check of the recipe refuses with its reason


def _sections(settings: dict[str, Any]) -> Iterator[Section]:
    """The sections of a recipe, its own keys first; values of a preset are defaults."""
    schema = _schema()
    preset = settings.get("preset")
    below = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    whole = merged(below, settings)
    plain, nested = [], []
    for name, each in schema["properties"].items():
        found = list(_fields(name, each, settings, whole))
        if len(found) == 1 and found[0].key == name:
            plain += found
        elif found:
            nested.append(Section(name, TITLES.get(name) or name.capitalize(), found))
    yield Section("", TITLES[""], plain)
    yield from nested


def _fields(key: str, schema: Schema, settings: Any, whole: Any) -> Iterator[Field]:
    """The fields of a key and below it. `settings`: the recipe; `whole`: with its preset."""
    value = _at(whole, key)
    kinds = [_resolved(each) for each in schema.get("anyOf", [schema])]
    described = next((each for each in kinds if each.get("type") != "null"), {})
    tag, named = _tags(described.get("oneOf", []))
    if tag:
        chosen = value.get(tag) if isinstance(value, dict) else None
        default = "" if len(kinds) > 1 else str((schema.get("default") or {}).get(tag, ""))
        yield _field(f"{key}.{tag}", CHOICE, schema, settings, default, list(named))
        described = named.get(chosen or default, {})
    for name, each in described.get("properties", {}).items():
        if "const" not in each:
            yield from _fields(f"{key}.{name}", each, settings, whole)
    kind, options = _kind(described)
    if kind:
        default = _text(value) if _at(settings, key) is None else ""
        default = default or _text(schema.get("default"))
        yield _field(key, kind, schema, settings, default, options)


def _field(
    key: str, kind: str, schema: Schema, settings: Any, default: str, options: list[str]
) -> Field:
    label = (key.partition(".")[2] or key).replace("_", " ").replace(".", " ")
    label = re.sub(r"\bnum ", "", label).replace("lora ", "LoRA ")
    value = _text(_at(settings, key))
    text = " ".join(schema.get("description", "").split())
    return Field(key, label[:1].upper() + label[1:], kind, value, default, options, text)


def _kind(schema: Schema) -> tuple[str, list[str]]:
    """The kind of the field of a key and the options of a choice; "" for a key without a field."""
    kind = schema.get("type")
    if "enum" in schema:
        return CHOICE, list(map(str, schema["enum"]))
    if kind == "boolean":
        return CHOICE, ["true", "false"]
    if kind == "array" and _resolved(schema.get("items", {})).get("type") == "string":
        return LINES, []
    names = {"integer": INTEGER, "number": NUMBER, "string": TEXT}
    return names.get(str(kind), ""), []


def _tags(alternatives: list[Schema]) -> tuple[str, dict[str, Schema]]:
    """(key of the tag, {tag: section}) of a union of sections; ("", {}) of anything else."""
    sections = [_resolved(each) for each in alternatives]
    for tag in ("kind", "name"):
        found = {each.get("properties", {}).get(tag, {}).get("const"): each for each in sections}
        if found and None not in found:
            return tag, found
    return "", {}


def _resolved(schema: Schema) -> Schema:
    """The schema behind a reference."""
    if "$ref" in schema:
        return _schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _at(settings: Any, key: str) -> Any:
    """The value of a dotted key, None if it is absent."""
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def _text(value: Any) -> str:
    """A value as the text of a field."""
    if value is None or isinstance(value, dict):
        return ""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)
