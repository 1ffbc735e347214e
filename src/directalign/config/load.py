"""Read a YAML recipe as a `RunConfig`, and write it back; every mistake is one line.

YAML is version 1.2, as in editors: `1e-4` is a number, `no` is text, a date is text. Duplicate keys
are refused. Overrides take precedence over the file, and the file over its preset.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..io.text import read_text
from ..types import DirectAlignError
from .errors import explain
from .presets import merged
from .run import RunConfig

RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the recipes of the package; `RECIPES/prompts` holds their prompt lists."""
_NOT_YAML = (yaml.YAMLError, RecursionError)

RENAMED = {
    "model.family": "architecture",
    "reward.project": "project_out",
    "reward.balance": "gradient_normalization: true",
    "reward.disagreement": "std_penalty",
    "reward.members.words": "control_phrases",
    "reward.members.reward.project": "project_out",
    "method.words": "control_phrases",
    "method.moves": "noise_levels",
    "method.trust": "kl_beta (a number)",
    "method.kl_weight": "kl_beta",
    "rollout.num_sampling_steps": "num_inference_steps",
    "train.clip_norm": "max_grad_norm",
    "train.accumulation": "gradient_accumulation_steps",
    "train.checkpoint_every": "save_every",
    "evaluate.num_pairs": "num_samples",
    "evaluate.pairs_during": "num_samples_during",
    "evaluate.off_topic": "control_prompts",
    "stop": "early_stopping",
    "early_stopping.drift": "max_degradation",
    "early_stopping.drift_patience": "degradation_patience",
    "early_stopping.judge": "metric_for_best",
    "early_stopping.judge_patience": "patience",
    "track": "trackers",
}
"""Keys of earlier versions and their present names; lists count as sections."""


def recipe_names() -> list[str]:
    """Names of the recipes of the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def is_recipe(text: str) -> bool:
    """Whether `text` names a recipe (a .yaml file, or a recipe of the package), not a model."""
    return Path(text).suffix in (".yaml", ".yml") or text in recipe_names()


def recipe_path(recipe: str | Path) -> Path:
    """The file of a recipe: a path is returned as it is, a name such as `world_srpo` looked up.

    Raises:
        DirectAlignError: neither a file nor a recipe of the package; lists the closest names.
    """
    path, names = Path(recipe), recipe_names()
    if str(recipe) in names:
        return RECIPES / f"{recipe}.yaml"
    if path.exists():
        return path
    close = difflib.get_close_matches(path.stem, names, n=3, cutoff=0.5)
    known = f"did you mean {' or '.join(close)}?" if close else f"names: {', '.join(names)}"
    raise DirectAlignError(
        f"{recipe}: no such recipe, neither a file nor a name of the package; {known}"
    )


def load_run(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe (a file, or a name of the package) and apply `a.b=value` overrides in YAML.

    Raises:
        DirectAlignError: one line with file or override, key, value, remedy; the first mistake.
    """
    path = recipe_path(recipe)
    settings = _read_mapping(path)
    given = {key: _nested(key, value) for key, value in map(_split_override, overrides)}
    try:
        _refuse_renamed(settings, str(path))
        for key, override in given.items():
            _refuse_renamed(override, f"--set {key}")
            settings = merged(settings, override)
        # JSON for pydantic's strict mode: a list may be a tuple, an int a float, nothing else.
        text = json.dumps(settings)
    except DirectAlignError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise DirectAlignError(
            f"{path}: contains something other than text, numbers, lists and sections ({error})"
        ) from error
    try:
        return RunConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise DirectAlignError(explain(error, str(path), list(given))) from error


def dump_run(run: RunConfig) -> str:
    """The resolved run as YAML with every field; `load_run` reads it back to an equal run."""
    return yaml.dump(
        run.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000
    )


def _refuse_renamed(given: Any, where: str, key: str = "", known: str = "") -> None:
    """Raise for a key of `RENAMED`. `key`: dotted key with list places; `known`: without them."""
    if isinstance(given, list):
        for index, each in enumerate(given):
            _refuse_renamed(each, where, f"{key}.{index}", known)
    if not isinstance(given, dict):
        return
    for name, value in given.items():
        full, path = f"{key}.{name}".lstrip("."), f"{known}.{name}".lstrip(".")
        if path in RENAMED:
            raise DirectAlignError(f"{where}: {full}: renamed to {RENAMED[path]}")
        _refuse_renamed(value, where, full, path)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.load(read_text(path, "recipe"), Loader=_Loader)
    except _NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise DirectAlignError(f"{where}: not a YAML recipe: {_yaml_problem(error)}") from error
    if recipe is None:
        raise DirectAlignError(
            f"{path}: empty; a recipe has at least name, model, reward, data and train"
        )
    if not isinstance(recipe, dict):
        raise DirectAlignError(
            f"{path}: a recipe is a mapping of keys such as name, model and train; this is a "
            f"{type(recipe).__name__}"
        )
    return recipe


def _split_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise DirectAlignError(
            f"--set {override}: write it as section.key=value, for example train.num_steps=100"
        )
    try:
        return key, yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        raise DirectAlignError(
            f"--set {override}: the value is not YAML: {_yaml_problem(error)}"
        ) from error


def _nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} from "a.b"."""
    return functools.reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), value)


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return str(problem).replace("\n", " ")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice; keep one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}


_PLAIN_SCALARS: list[tuple[str, str, str]] = [
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
]
"""Types of unquoted words (YAML 1.2 core schema): tag, pattern, first characters."""

for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _PLAIN_SCALARS:
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(f"^(?:{_pattern})$"),
            ["" if c == "\0" else c for c in _first],
        )


def parse_section(kind: Any, section: Any, where: str, remedy: str) -> Any:
    """A config of the (union) type `kind` from a parsed YAML section. Raises: DirectAlignError."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(section))
    except ValidationError as error:
        first = error.errors()[0]
        place, problem = ".".join(map(str, first["loc"][1:])), first["msg"]
        raise DirectAlignError(f"{where}: {place or 'section'}: {problem}; {remedy}") from error
    except TypeError as error:
        raise DirectAlignError(f"{where}: section: {error}; {remedy}") from error
