"""From a YAML recipe to a `config.Run`, and back; every mistake is one line with file, key, value, rule and remedy.

YAML is read as version 1.2 has it (as editors do): `1e-4` is a number, `no` is a word, a date is text. Duplicate keys are
refused. Overrides are laid over the file as the file is laid over its preset.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..data.text_files import read_text
from ..types import DirectAlignError
from . import Run
from .errors import explain
from .presets import merged

_NOT_YAML = (yaml.YAMLError, RecursionError)


def load_run(file: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read a recipe and lay `a.b=value` overrides over it, each value a piece of YAML.

    Raises:
        DirectAlignError: one line naming the file (or the override), key, value and remedy; of several mistakes the first.
    """
    path = Path(file)
    recipe = _read_mapping(path)
    given = {key: _nested(key, value) for key, value in map(_split_override, overrides)}
    for override in given.values():
        recipe = merged(recipe, override)
    try:
        return Run.model_validate_json(_as_json(recipe, path), strict=True)
    except ValidationError as error:
        raise DirectAlignError(explain(error, str(path), list(given))) from error


def dump_run(run: Run) -> str:
    """The resolved run as YAML, every field spelled out; `load_run` reads it back to an equal run."""
    return yaml.dump(run.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _read_mapping(path: Path) -> dict[str, Any]:
    text = read_text(path, "recipe")
    try:
        recipe = yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        raise DirectAlignError(f"{_place(path, error)}: not a YAML recipe: {_problem(error)}") from error
    if recipe is None:
        raise DirectAlignError(f"{path}: empty; a recipe has at least name, model, reward, data and train")
    if not isinstance(recipe, dict):
        raise DirectAlignError(f"{path}: a recipe is a mapping of keys such as name, model and train; this is a {type(recipe).__name__}")
    return recipe


def _as_json(recipe: dict[str, Any], path: Path) -> str:
    """JSON for pydantic's strict mode: an array may be a tuple, an integer a float, and nothing else is coerced."""
    try:
        return json.dumps(recipe)
    except (TypeError, ValueError, RecursionError) as error:
        raise DirectAlignError(f"{path}: holds something other than text, numbers, lists and sections ({error})") from error


def _split_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise DirectAlignError(f"--set {override}: write it as section.key=value, for example train.num_steps=100")
    try:
        return key, yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        raise DirectAlignError(f"--set {override}: the value is not YAML: {_problem(error)}") from error


def _nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} from "a.b"."""
    return functools.reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), value)


def _place(path: Path, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).replace("\n", " ")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own way: filled below, not inherited)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice; keep one", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


_PLAIN_SCALARS: list[tuple[str, str, str]] = [
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("merge", r"<<", "<"),
]
"""What an unquoted word is, when it is not text: tag, pattern, first characters (YAML 1.2 core schema)."""

for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _PLAIN_SCALARS:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])
