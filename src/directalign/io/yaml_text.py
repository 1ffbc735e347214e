"""YAML 1.2 as in editors: `1e-4` is a number, `no` and dates are text; duplicate keys are refused.

Everything that a recipe, an override or a section in a file or option holds is parsed here, with a
limit on what aliases expand to.
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from ..errors import DirectAlignError

MAX_BYTES = 256 * 1024
"""Largest file of settings; a larger one takes seconds to parse, and none in use has a tenth."""
_MAX_VALUES = 50_000
"""Most values in one document, with every alias written out."""


def parse_yaml(text: str, where: str, problem: str) -> Any:
    """The document in `text`. Raises DirectAlignError as "where:line: problem: reason"."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark and not where.startswith("--") else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        if isinstance(error, RecursionError):
            reason = "nested too deeply"
        line_free = " ".join(str(reason).split())
        raise DirectAlignError(f"{where}{line}: {problem}: {line_free}") from error


def dump_yaml(value: Any) -> str:
    """YAML of text, numbers, lists and sections that `parse_yaml` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _expanded(node, {}) > _MAX_VALUES:
            raise ConstructorError(
                None, None, f"holds over {_MAX_VALUES:,} values with its aliases written out"
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConstructorError(
                None, None, f"{str(node.value)[:60]!r} is no {tag}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise ConstructorError(
                    None, None, f"key {key!r} is given twice; keep one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)  # pyright: ignore


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Number of values in a node with its aliases written out; in itself too many."""
    if id(node) not in sizes:
        sizes[id(node)] = _MAX_VALUES
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        nested = isinstance(node, yaml.CollectionNode)
        sizes[id(node)] = 1 + (sum(_expanded(part, sizes) for part in parts) if nested else 0)
    return sizes[id(node)]


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
"""Types of unquoted words (YAML 1.2 core schema): tag, pattern, first characters."""

for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _PLAIN_SCALARS:
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(f"^(?:{_pattern})$"),
            ["" if c == "\0" else c for c in _first],
        )
