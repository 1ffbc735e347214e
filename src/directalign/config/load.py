"""Read a YAML recipe as a `RunConfig`, and write it back; every mistake is one line.

YAML is version 1.2, as in editors: `1e-4` is a number, `no` is text, a date is text. Duplicate keys
are refused. Overrides take precedence over the file, and the file over its preset.
"""

import difflib
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import DirectAlignError, Mistakes
from ..io.text import checked_unicode, read_text
from ..io.yaml_text import MAX_BYTES, dump_yaml, parse_yaml
from .base import FIXED, LAYOUT, RESUME, differences
from .errors import all_keys, explain, locate
from .presets import merged
from .rollout import RolloutConfig
from .run import EvaluateConfig, RunConfig

RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the recipes of the package; `RECIPES/prompts` holds their prompt lists."""

RENAMED: dict[str, str] = parse_yaml(
    (Path(__file__).parent / "renamed.yaml").read_text(encoding="utf-8"), "renamed.yaml", "broken"
)
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
        DirectAlignError: one line with file or override, key, value, remedy; `Mistakes` if the
            keys or values of the whole recipe have been read: a line for each.
    """
    path = recipe_path(recipe)
    return load_text(read_text(path, "recipe", MAX_BYTES), str(path), overrides)


def load_text(text: str, where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """As `load_run`, from the text of a recipe that errors call `where`."""
    settings = recipe_mapping(text, where)
    given = dict(map(_split_override, overrides))
    try:
        _check_keys(settings, where)
        for key, value in given.items():
            override = _nested(key, value)
            _check_keys(override, f"--set {key}")
            if value == {}:
                _remove(settings, key)
            settings = merged(settings, override)
        return _validated(settings, {key for key, value in given.items() if value is None})
    except ValidationError as error:
        raise Mistakes(explain(error, where, list(given))) from error
    except DirectAlignError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise DirectAlignError(
            f"{where}: contains something other than text, numbers, lists and sections ({error})"
        ) from error


def run_of_sections(sections: Mapping[str, Any], where: str) -> RunConfig:
    """A run from the sections of a recipe as plain values; errors start with `where`.

    Raises:
        DirectAlignError: one line with key, value, remedy; the first mistake.
    """
    try:
        _check_keys(sections, where)
        return _validated(dict(sections), set())
    except ValidationError as error:
        raise Mistakes(explain(error, where)) from error
    except (TypeError, RecursionError) as error:
        raise DirectAlignError(f"{where}: only text, numbers, lists and dicts ({error})") from error


def _validated(settings: dict[str, Any], nulls: set[str]) -> RunConfig:
    """The run; of the keys that an override set to null, those that cannot be null are removed."""
    # JSON for pydantic's strict mode: a list may be a tuple, an int a float, nothing else.
    text = json.dumps(settings)
    try:
        return RunConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        refused = nulls & {locate(each["loc"])[0] for each in error.errors()}
        if not refused:
            raise
        for key in refused:
            _remove(settings, key)
        return _validated(settings, nulls - refused)


def dump_run(run: RunConfig, overrides: Sequence[str] = ()) -> str:
    """The resolved run as YAML with every field; `load_run` reads it back to an equal run.

    `overrides` are recorded in comments, for a resume: see `resumed_run`.
    """
    lines = [f"{_PROCESSES}{os.environ.get('WORLD_SIZE', '1')}"] if overrides else []
    lines += [_OVERRIDE + json.dumps(each) for each in overrides]
    return "".join(f"{line}\n" for line in lines) + dump_yaml(run.model_dump(mode="json"))


_OVERRIDE, _PROCESSES = "# --set ", "# processes: "


@dataclass(frozen=True)
class ResumedRun:
    """A run that continues: `run.yaml` of its folder with new overrides.

    `overrides` are all that run.yaml records: the earlier ones and the new ones. `unused` lists the
    keys that the recipe has now, and the run has not: "train.num_steps 60 -> 30".
    """

    run: RunConfig
    overrides: list[str]
    unused: list[str]

    def unused_line(self, recipe: Path, out: Path) -> str:
        """The `unused` keys in words."""
        return (
            f"{recipe}: not used where it differs from {out / 'run.yaml'}: "
            f"{', '.join(self.unused)}; to change a key, repeat it as --set KEY=VALUE"
        )


def resumed_run(recipe: str | Path, out: Path, overrides: Sequence[str] = ()) -> ResumedRun:
    """The run in `out` as it continues. Batch sizes fit a number of processes: with another one,
    the recipe's replace those of earlier overrides.

    Raises: DirectAlignError for a missing or damaged run.yaml, and as `load_run`.
    """
    file = out / "run.yaml"
    lines = read_text(file, "recipe").split("\n")
    given = [line[len(_OVERRIDE) :] for line in lines if line.startswith(_OVERRIDE)]
    try:
        found = [str(json.loads(each)) for each in given]
        recorded = {_split_override(each)[0]: each for each in found}
    except (ValueError, DirectAlignError) as error:
        raise DirectAlignError(
            f"{file}: a line {_OVERRIDE}is damaged ({error}); restore it"
        ) from error
    new = dict(map(_split_override, overrides))
    layout = dict[str, Any]()
    if found and f"{_PROCESSES}{os.environ.get('WORLD_SIZE', '1')}" not in lines:
        rule, plain = {RESUME: LAYOUT}, load_run(recipe)
        keys = [key for key, field in all_keys(RunConfig) if field.json_schema_extra == rule]
        layout = {key: attrgetter(key)(plain) for key in keys if key in recorded and key not in new}
    again = [f"{key}={json.dumps(value)}" for key, value in layout.items()]
    run = load_run(file, [*again, *overrides])
    kept = [each for key, each in recorded.items() if key not in new and key not in layout]
    now = load_run(recipe, [*kept, *overrides])
    unused = [_change(*each) for each in differences(run, now)]
    return ResumedRun(run, [*kept, *overrides], unused)


def with_rollout(run: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """`run` with other sampling settings, by key of `RolloutConfig`. Raises: DirectAlignError."""
    try:
        rollout = RolloutConfig.model_validate(run.rollout.model_dump() | dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{first['loc'][0]}".replace("_", "-")
        raise DirectAlignError(
            f"{option} {first['input']}: {first['msg']}; correct it, or omit it"
        ) from error
    return run.model_copy(update={"rollout": rollout})


def changes_at_resume(
    where: Path, recorded: Mapping[str, Any] | RunConfig, run: RunConfig
) -> list[str]:
    """What differs from the recorded run, as "KEY before -> now".

    Raises: DirectAlignError, naming the keys, if one of them must stay.
    """
    try:
        before = RunConfig.model_validate(recorded)
    except ValidationError as error:
        raise DirectAlignError(
            f"{where}: not a run of this version ({explain(error, 'config')[0]}); continue it with "
            "the version of directalign that began it"
        ) from error
    found = list(differences(before, run))
    if refused := [each for each in found if each[1] == FIXED]:
        remedy = ""
        if any(key.startswith("evaluate.") for key, *_ in refused):
            remedy = " (directalign evaluate measures a run in any other way)"
        raise DirectAlignError(
            f"{where} is of another config: {', '.join(_change(*each) for each in refused)}; "
            f"restore these values or choose another --out{remedy}"
        )
    _check_equal_samples(where, before.evaluate, run.evaluate)
    return [_change(*each) for each in found]


def _check_equal_samples(where: Path, before: EvaluateConfig, now: EvaluateConfig) -> None:
    """Refuse measurements during the run of fewer samples than the base model was measured on."""
    fewer = now.num_samples_during < now.num_samples
    if before.every == 0 < now.every and fewer:
        raise DirectAlignError(
            f"{where}: evaluate.every 0 -> {now.every}: measurements during the run take "
            f"{now.num_samples_during} samples, and the base model was measured on all "
            f"{now.num_samples} only; keep 0, or start a new run"
        )


def _change(key: str, rule: str, was: Any, now: Any) -> str:
    """ "KEY before -> now"; of a section its tag."""
    del rule
    was, now = (
        next((getattr(value, key) for key in ("name", "kind") if hasattr(value, key)), value)
        for value in (was, now)
    )
    return f"{key} {was!r:.100} -> {now!r:.100}"


def _check_keys(given: Any, where: str, key: str = "", known: str = "") -> None:
    """Raise for a key of `RENAMED`, and for text that is not Unicode.

    `key`: dotted key with list places; `known`: without them.
    """
    if isinstance(given, list):
        for index, each in enumerate(given):
            _check_keys(each, where, f"{key}.{index}", known)
    if isinstance(given, str):
        checked_unicode(given, f"{where}: {key}")
    if not isinstance(given, dict):
        return
    for name, value in given.items():
        checked_unicode(name, f"{where}: {key}")
        full, path = f"{key}.{name}".lstrip("."), f"{known}.{name}".lstrip(".")
        if path in RENAMED:
            raise DirectAlignError(f"{where}: {full}: renamed to {RENAMED[path]}")
        _check_keys(value, where, full, path)


def recipe_mapping(text: str, where: str) -> dict[str, Any]:
    """The keys and values of a recipe's text, unchecked. Raises: DirectAlignError."""
    recipe = parse_yaml(text, where, "not a YAML recipe")
    if recipe is None:
        raise DirectAlignError(
            f"{where}: empty; a recipe has at least name, model, reward, data and train"
        )
    if not isinstance(recipe, dict):
        raise DirectAlignError(
            f"{where}: a recipe is a mapping of keys such as name, model and train; this is a "
            f"{type(recipe).__name__}"
        )
    return recipe


def with_value(settings: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The settings of a recipe with another value of a dotted key; without the key for None."""
    if value is not None:
        return merged(settings, _nested(key, value))
    found = json.loads(json.dumps(settings))
    _remove(found, key)
    return found


def _split_override(override: str) -> tuple[str, Any]:
    given, equals, text = override.partition("=")
    names = [name.strip() for name in given.split(".")]
    key = ".".join(names)
    if not equals or not all(names):
        raise DirectAlignError(
            f"--set {override}: write it as section.key=value, for example train.num_steps=100"
        )
    value = text.strip()
    if "#" in value and (value[0] == "#" or value[0] not in "'\"[{&*!|>"):
        plain = parse_yaml(text, f"--set {override}", "the value is not YAML")
        if plain is None or isinstance(plain, str):  # in an override, # starts no comment
            return key, value
    return key, parse_yaml(text, f"--set {override}", "the value is not YAML")


def _remove(settings: Any, key: str) -> None:
    """Remove a dotted key, if it is there."""
    *above, last = key.split(".")
    for name in above:
        settings = settings.get(name) if isinstance(settings, dict) else None
    if isinstance(settings, dict):
        settings.pop(last, None)


def _nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} from "a.b"."""
    return functools.reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), value)


def parse_section(kind: Any, section: Any, where: str, remedy: str) -> Any:
    """A config of the (union) type `kind` from a parsed YAML section. Raises: DirectAlignError."""
    _check_keys(section, where)
    try:
        return TypeAdapter(kind).validate_json(json.dumps(section))
    except ValidationError as error:
        first = error.errors()[0]
        place, problem = ".".join(map(str, first["loc"][1:])), first["msg"]
        raise DirectAlignError(f"{where}: {place or 'section'}: {problem}; {remedy}") from error
    except TypeError as error:
        raise DirectAlignError(f"{where}: section: {error}; {remedy}") from error
