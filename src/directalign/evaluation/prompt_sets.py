"""The prompt sets of the field, as their authors publish them: a row keeps the group it belongs to, and GenEval's what its image must show.

    geneval     evaluation_metadata.jsonl   tag, include, exclude, prompt      group: the tag (counting, position, ...)
    hpdv2       benchmark/STYLE.json        a JSON list of prompts             group: the style, from the file's name
    drawbench   a table                     Prompts, Category                  group: the category
    parti       PartiPrompts.tsv            Prompt, Category, Challenge        group: the category
    plain       whatever prompts.read_prompts takes                            no group

Nothing is downloaded. PartiPrompts' challenge and note are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..data.hf_datasets import is_address
from ..data.prompts import read_prompts, table
from ..data.text_files import checked_prompt, json_rows, prompt_of_row, read_text
from ..types import DirectAlignError
from .geneval_facts import checked_facts

Form = Literal["plain", "geneval", "hpdv2", "drawbench", "parti"]
STYLES = ("anime", "concept-art", "paintings", "photo")
"""The four styles of the HPDv2 benchmark, and the names of its files (also with `benchmark_` before them)."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt; the group of the set that it belongs to, None in a plain list; and GenEval's facts (see `geneval_facts.checked_facts`), else {}."""

    prompt: str
    group: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSet:
    """The rows of a set in its own order; `source` is what the user wrote, `form` how it was read."""

    source: str
    form: Form
    rows: tuple[PromptRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(row.prompt for row in self.rows)

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of its groups, in the order in which they come up."""
        return tuple(dict.fromkeys(row.group for row in self.rows if row.group is not None))


def read_prompt_set(source: str | Path) -> PromptSet:
    """Read a set, its form recognised by content, or said: `geneval:FILE`, `hpdv2:FOLDER`, `drawbench:FILE`, `parti:FILE`.

    Args:
        source: a file or folder of one of the forms above, or whatever `prompts.read_prompts` takes (a list, `hf:...`, world).
    Raises:
        DirectAlignError: as `read_prompts`, and whatever is not as its form wants it; names file and line.
    """
    form, path = _form_of(str(source))
    rows = tuple(row for row in _READERS[form](path) if row.prompt)
    if not rows:
        raise DirectAlignError(f"{source}: no prompts in it; give another set")
    return PromptSet(str(source), form, rows)


def _form_of(source: str) -> tuple[Form, str]:
    said, _, rest = source.partition(":")
    form = next((form for form in get_args(Form) if form == said and form != "plain"), None)
    return (form, rest) if form is not None else (_recognised(source), source)


def _recognised(source: str) -> Form:
    path = Path(source)
    if source == "world" or is_address(source) or not path.exists():
        return "plain"
    if path.is_dir() or path.suffix.lower() == ".json":
        return "hpdv2"
    if path.suffix.lower() == ".jsonl":
        first = next(json_rows(path, "prompt set"), (0, {}))[1]
        return "geneval" if {"tag", "include"} <= first.keys() else "plain"
    if path.suffix.lower() in (".csv", ".tsv"):
        names = set(_header(path))
        return "parti" if {"prompt", "category", "challenge"} <= names else "drawbench" if {"prompts", "category"} <= names else "plain"
    return "plain"


def _plain(source: str) -> Iterator[PromptRow]:
    yield from map(PromptRow, read_prompts(source))


def _geneval(source: str) -> Iterator[PromptRow]:
    for line, row in json_rows(Path(source), "prompt set"):
        where = f"{source}:{line}"
        facts = checked_facts(row, where)
        yield PromptRow(checked_prompt(prompt_of_row(row, where), where), facts["tag"], facts)


def _hpdv2(source: str) -> Iterator[PromptRow]:
    """A folder with a file per style, in the order of `STYLES`, or one such file."""
    path = Path(source)
    files = [path] if not path.is_dir() else [file for style in STYLES for file in _style_files(path, style)]
    if not files:
        raise DirectAlignError(f"{path}: holds no {', '.join(f'{style}.json' for style in STYLES)}; give the HPDv2 benchmark's folder, or a list of prompts")
    for file in files:
        style = file.stem.removeprefix("benchmark_")
        for place, prompt in enumerate(_list_of(file), start=1):
            where = f"{file}: item {place}"
            if not isinstance(prompt, str):
                raise DirectAlignError(f"{where}: {type(prompt).__name__} instead of a prompt; HPDv2's files are lists of texts")
            yield PromptRow(checked_prompt(prompt, where), style)


def _style_files(folder: Path, style: str) -> list[Path]:
    return [file for name in (f"{style}.json", f"benchmark_{style}.json") if (file := folder / name).is_file()][:1]


def _list_of(file: Path) -> list[Any]:
    text = read_text(file, "prompt set")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DirectAlignError(f"{file}:{line}: not JSON ({error}); HPDv2's files are lists of texts") from error
    if not isinstance(found, list):
        raise DirectAlignError(f"{file}:1: {type(found).__name__} instead of a list; HPDv2's files are lists of texts")
    return found


def _drawbench(source: str) -> Iterator[PromptRow]:
    return _table(source, "Prompts")


def _parti(source: str) -> Iterator[PromptRow]:
    return _table(source, "Prompt")


def _table(source: str, prompt: str) -> Iterator[PromptRow]:
    """The rows of a table with a column of prompts and one of categories; blank lines are blank prompts."""
    path = Path(source)
    header = _header(path)
    for name in (prompt, "Category"):
        if name.lower() not in header:
            raise DirectAlignError(f"{path}:1: no column {name} among {', '.join(map(repr, header))[:200] or 'none'}")
    places = header.index(prompt.lower()), header.index("category")
    for line, fields in list(table(path))[1:]:
        where = f"{path}:{line}"
        blank = not any(fields)
        if not blank and len(fields) <= max(places):
            raise DirectAlignError(f"{where}: {len(fields)} fields, and {prompt} and Category are fields {places[0] + 1} and {places[1] + 1}")
        yield PromptRow("") if blank else PromptRow(checked_prompt(fields[places[0]], where), fields[places[1]].strip() or None)


def _header(path: Path) -> list[str]:
    return [name.strip().lower() for name in next(table(path), (1, []))[1]]


_READERS: dict[Form, Callable[[str], Iterator[PromptRow]]] = {
    "plain": _plain,
    "geneval": _geneval,
    "hpdv2": _hpdv2,
    "drawbench": _drawbench,
    "parti": _parti,
}
