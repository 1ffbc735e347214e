"""From a YAML recipe to a `config.Run`, and back; every mistake is one line with file, key, value, rule and remedy.

YAML is read as version 1.2 has it (as editors do): `1e-4` is a number, `no` is a word, a date is text. Duplicate keys are
refused. Overrides are laid over the file as the file is laid over its preset.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ..data.text_files import read_text
from ..types import DirectAlignError
from . import RunConfig
from .presets import merged

_REMEDIES = {
    "int_type": "write a whole number such as 100, without quotes",
    "float_type": "write a number such as 1e-4, without quotes",
    "bool_type": "write true or false",
    "string_type": "write text, in quotes if it looks like a number",
    "list_type": "write a list: [a, b]",
    "tuple_type": "write a list of numbers: [a, b]",
    "model_type": "write a section: keys, each on its own indented line",
    "model_attributes_type": "write a section: keys, each on its own indented line",
    "dict_type": "write a section: names of your own, each with its settings",
}


@dataclass(frozen=True)
class Entries:
    """Sections under names that the recipe's writer chose, all of one kind or one union."""

    of: type[BaseModel] | dict[str, type[BaseModel]]


Below = type[BaseModel] | dict[str, type[BaseModel]] | Entries | None
"""What lies under a key."""


def explain(error: ValidationError, file: str, overrides: Sequence[str] = ()) -> str:
    """The first mistake as "file: key: complaint; remedy", unknown keys before all others, and how many more there are.

    Args:
        overrides: dotted keys given on the command line; a mistake under one of them names it instead of the file.
    """
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    path, section, field = _walk(mistakes[0]["loc"])
    source = _source(path, file, overrides)
    more = f" ({len(mistakes) - 1} more to mend after this one)" if len(mistakes) > 1 else ""
    return f"{source}: {_complaint(mistakes[0], path, section, field)}{more}"


def _source(path: str, file: str, overrides: Sequence[str]) -> str:
    """Who said it: the file, or the override that set the key, a section above it, or something within it."""
    if not path:  # a rule between sections says itself which
        return file
    if path in overrides:
        return f"--set {path}"
    above = next((key for key in overrides if path.startswith(f"{key}.")), None)
    within = next((key for key in overrides if key.startswith(f"{path}.")), None)
    if above:
        return f"--set {above}: {path}"
    return f"{file} with --set {within}: {path}" if within else f"{file}: {path}"


def _complaint(
    mistake: Mapping[str, Any], path: str, section: type[BaseModel] | None, field: FieldInfo | None
) -> str:
    kind, context, meaning = mistake["type"], mistake.get("ctx", {}), _meaning(field)
    if kind == "extra_forbidden":
        return f"unknown key; {_nearest_key(path, section)}"
    if kind == "missing":
        return f"missing; add it{meaning}"
    if kind == "union_tag_not_found":
        return f"missing key {_tag(field)}; add it, one of {', '.join(_sorts(field))}"
    if kind == "union_tag_invalid":
        return f"{_tag(field)} {context['tag']!r} is none of {', '.join(_sorts(field))}{_did_you_mean(context['tag'], _sorts(field))}"
    if kind == "literal_error":
        return f"got {_shown(mistake['input'])}, and it is one of {context['expected']}{_did_you_mean(mistake['input'], _choices(field))}"
    if kind == "value_error":
        return str(context["error"])
    remedy = f"; {_REMEDIES[kind]}" if kind in _REMEDIES else ""
    rule = mistake["msg"].removeprefix("Input ").removeprefix("String ").removeprefix("List ")
    return f"got {_shown(mistake['input'])}, and it {rule}{remedy}{meaning}"


def _walk(loc: Sequence[str | int]) -> tuple[str, type[BaseModel] | None, FieldInfo | None]:
    """The dotted path of a pydantic location, the section that holds its last key, and the field itself if it exists."""
    path: list[str] = []
    section: type[BaseModel] | None = None
    field: FieldInfo | None = None
    below: Below = RunConfig
    for part in loc:
        if isinstance(below, Entries):
            path.append(str(part))
            below = below.of
            continue
        if isinstance(
            below, dict
        ):  # inside a union pydantic names the alternative first: not a key of the recipe
            below = below.get(str(part))
            continue
        path.append(str(part))
        if isinstance(part, str) and below is not None:
            section, field = below, below.model_fields.get(part)
            below = _below(field)
    return ".".join(path), section, field


def _below(field: FieldInfo | None) -> Below:
    """The section behind a field or its list; for a union of sections, each under its kind; `Entries` for named ones; None for plain values."""
    return None if field is None else _under(field.annotation)


def _under(annotation: Any) -> Below:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, Annotated):
        return _under(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        below = _under(get_args(annotation)[1])
        return Entries(below) if isinstance(below, (dict, type)) else None
    sections = _sections(annotation)
    return sections[0] if len(sections) == 1 else {_sort(each): each for each in sections} or None


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The alternatives of a union of sections, each perhaps wrapped with its tag, or the union itself with its rule."""
    found = []
    for each in get_args(annotation):
        inner = get_args(each)[0] if get_origin(each) is Annotated else each
        found += (
            [inner]
            if inspect.isclass(inner) and issubclass(inner, BaseModel)
            else _sections(inner)
            if inner is not each
            else []
        )
    return found


def _sort(section: type[BaseModel]) -> str:
    return section.model_fields["kind" if "kind" in section.model_fields else "name"].default


def _tag(field: FieldInfo | None) -> str:
    """The key that says which alternative a section is."""
    below = _sections_of(field)
    return "kind" if below and "kind" in next(iter(below.values())).model_fields else "name"


def _sorts(field: FieldInfo | None) -> list[str]:
    return list(_sections_of(field))


def _sections_of(field: FieldInfo | None) -> dict[str, type[BaseModel]]:
    below = _below(field)
    below = below.of if isinstance(below, Entries) else below
    return below if isinstance(below, dict) else {}


def _choices(field: FieldInfo | None) -> list[str]:
    """The words a Literal field allows, also behind an optional."""
    if field is None:
        return []
    arguments = [
        inner for each in get_args(field.annotation) for inner in (get_args(each) or [each])
    ]
    return [each for each in arguments if isinstance(each, str)]


def _nearest_key(path: str, section: type[BaseModel] | None) -> str:
    """The nearest name in the same section, else the same name in another section, else all names of the section."""
    parent, _, name = path.rpartition(".")
    known = list(section.model_fields) if section else []
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    elsewhere = [
        key
        for key in _all_keys(RunConfig)
        if difflib.get_close_matches(name, [key.rpartition(".")[2]], cutoff=0.85)
    ]
    if path in elsewhere:
        return (
            f"it belongs to another kind of {parent}: remove it, or set {parent}.name to that kind"
        )
    if elsewhere:
        return f"did you mean {elsewhere[0]!r}?"
    return f"{parent or 'a recipe'} has {', '.join(known)}"


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        below = _below(field)
        below = below.of if isinstance(below, Entries) else below
        sections = list(below.values()) if isinstance(below, dict) else [below] if below else []
        keys += [
            prefix + name,
            *(key for each in sections for key in _all_keys(each, f"{prefix}{name}.")),
        ]
    return keys


def _did_you_mean(given: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1) if isinstance(given, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def _meaning(field: FieldInfo | None) -> str:
    return f" ({field.description.rstrip('.')})" if field and field.description else ""


def _shown(value: Any) -> str:
    """A value as a recipe has it, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
"""Keys of the first edition and their names today; lists count as sections."""


def _refuse_renamed(given: Any, where: str, key: str = "", known: str = "") -> None:
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


RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the recipes that come with the package; `RECIPES/prompts` holds their prompt lists."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def is_recipe(text: str) -> bool:
    """Whether `text` names a recipe (a .yaml file or a name of the package) and not a model."""
    return Path(text).suffix in (".yaml", ".yml") or text in recipe_names()


def recipe_path(recipe: str | Path) -> Path:
    """The file of a recipe: a path as it is, a bare name such as `world_srpo` from the package.

    Raises:
        DirectAlignError: no such file and no such name; lists the closest names.
    """
    path, names = Path(recipe), recipe_names()
    if str(recipe) in names:
        return RECIPES / f"{recipe}.yaml"
    if path.exists():
        return path
    close = difflib.get_close_matches(path.stem, names, n=3, cutoff=0.5)
    known = f"did you mean {' or '.join(close)}?" if close else f"names: {', '.join(names)}"
    raise DirectAlignError(f"{recipe}: no such recipe, neither a file nor a name; {known}")


def load_run(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe (a file or a name of the package) and apply `a.b=value` overrides in YAML.

    Raises:
        DirectAlignError: one line with file or override, key, value, remedy; the first mistake.
    """
    path = recipe_path(recipe)
    settings = _read_mapping(path)
    given = {key: _nested(key, value) for key, value in map(_split_override, overrides)}
    _refuse_renamed(settings, str(path))
    for key, override in given.items():
        _refuse_renamed(override, f"--set {key}")
        settings = merged(settings, override)
    try:
        return RunConfig.model_validate_json(_as_json(settings, path), strict=True)
    except ValidationError as error:
        raise DirectAlignError(explain(error, str(path), list(given))) from error


def dump_run(run: RunConfig) -> str:
    """The resolved run as YAML, every field spelled out; `load_run` reads it back to an equal run."""
    return yaml.dump(
        run.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000
    )


def _read_mapping(path: Path) -> dict[str, Any]:
    text = read_text(path, "recipe")
    try:
        recipe = yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        raise DirectAlignError(
            f"{_place(path, error)}: not a YAML recipe: {_problem(error)}"
        ) from error
    if recipe is None:
        raise DirectAlignError(
            f"{path}: empty; a recipe has at least name, model, reward, data and train"
        )
    if not isinstance(recipe, dict):
        raise DirectAlignError(
            f"{path}: a recipe is a mapping of keys such as name, model and train; this is a {type(recipe).__name__}"
        )
    return recipe


def _as_json(recipe: dict[str, Any], path: Path) -> str:
    """JSON for pydantic's strict mode: an array may be a tuple, an integer a float, and nothing else is coerced."""
    try:
        return json.dumps(recipe)
    except (TypeError, ValueError, RecursionError) as error:
        raise DirectAlignError(
            f"{path}: holds something other than text, numbers, lists and sections ({error})"
        ) from error


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
            f"--set {override}: the value is not YAML: {_problem(error)}"
        ) from error


def _nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} from "a.b"."""
    return functools.reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), value)


def _place(path: Path, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).replace(
        "\n", " "
    )


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own way: filled below, not inherited)

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
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


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
"""What an unquoted word is, when it is not text: tag, pattern, first characters (YAML 1.2 core schema)."""

for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _PLAIN_SCALARS:
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(f"^(?:{_pattern})$"),
            ["" if c == "\0" else c for c in _first],
        )
