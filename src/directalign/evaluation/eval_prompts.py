"""What GenEval's metadata says that an image must show, and must not: one line of `evaluation_metadata.jsonl`, checked.

    {"tag": "position", "include": [{"class": "kite", "count": 1}, {"class": "wine glass", "count": 1, "position": ["above", 0]}], "prompt": ...}
    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], "prompt": ...}

Format: djghosh13/geneval (arXiv 2310.11513). Judging an image by it is elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from .. import config
from ..data.hf_datasets import is_address
from ..data.image_dataset import scan_images
from ..data.prompts import held_out_captions, read_prompts, table, train_captions
from ..data.shuffle import permutation
from ..data.text_files import checked_prompt, json_rows, prompt_of_row, read_text
from ..types import DirectAlignError, Latents

RELATIONS = ("left of", "right of", "above", "below")


def checked_facts(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """{"tag", "include", "exclude"} of one line, each list (exclude may be empty) of {"class", "count", "color"?, "position"?}.

    "position" is [relation, n]: the object stands in that relation (of `RELATIONS`) to the n-th of "include", an earlier one.
    Anything else raises a DirectAlignError that begins with `where`.
    """
    if not isinstance(row.get("tag"), str) or not row["tag"]:
        raise DirectAlignError(
            f"{where}: tag is {row.get('tag')!r:.60}; GenEval names the kind of a prompt there, such as counting"
        )
    if not row.get("include"):
        raise DirectAlignError(
            f"{where}: include is missing or empty; GenEval lists there what the image must show"
        )
    return {
        "tag": row["tag"],
        "include": _objects(row, "include", where),
        "exclude": _objects(row, "exclude", where),
    }


def _objects(row: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    listed = row.get(key, [])
    if not isinstance(listed, list):
        raise DirectAlignError(
            f"{where}: {key} is {type(listed).__name__}; write a list of objects, each with class and count"
        )
    return [_object(entry, place, f"{where}: {key}[{place}]") for place, entry in enumerate(listed)]


def _object(entry: Any, place: int, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DirectAlignError(
            f"{where} is {type(entry).__name__}; write an object with class and count"
        )
    if not isinstance(entry.get("class"), str) or not entry["class"]:
        raise DirectAlignError(
            f"{where}.class is {entry.get('class')!r:.60}; name a kind of thing, such as dog"
        )
    if type(entry.get("count")) is not int or entry["count"] < 1:
        raise DirectAlignError(
            f"{where}.count is {entry.get('count')!r:.60}; a whole number from 1 is needed"
        )
    if not isinstance(entry.get("color", ""), str):
        raise DirectAlignError(f"{where}.color is {entry['color']!r:.60}; name a colour")
    if "position" in entry and not _is_position(entry["position"], place):
        raise DirectAlignError(
            f"{where}.position is {entry['position']!r:.60}; write [relation, n]: one of {', '.join(RELATIONS)}, and an earlier object"
        )
    return {name: entry[name] for name in ("class", "count", "color", "position") if name in entry}


def _is_position(value: Any, place: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and value[0] in RELATIONS
        and type(value[1]) is int
        and 0 <= value[1] < place
    )


FIRST_SEED = 10_000


@dataclass(frozen=True)
class Pairs:
    """Prompts and seeds, equally long; the first m of n pairs are the same pairs as when m are asked for."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.seeds):
            raise DirectAlignError(
                f"{len(self.prompts)} prompts and {len(self.seeds)} seeds do not make pairs: give one seed per prompt"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, count: int) -> Pairs:
        """The first `count` pairs."""
        return Pairs(self.prompts[:count], self.seeds[:count])


def fixed_pairs(prompts: Sequence[str], num_samples: int) -> Pairs:
    """`num_samples` pairs: the prompts in a fixed shuffled order, taken up again from the front with new seeds."""
    order = permutation(len(prompts), seed=0, epoch=0)
    chosen = tuple(prompts[order[i % len(order)]] for i in range(num_samples))
    return Pairs(chosen, tuple(range(FIRST_SEED, FIRST_SEED + num_samples)))


def measured_prompts(data: config.DataConfig) -> list[str]:
    """What a run is measured on: all 240 captions of the embedded world, held-out ones among them, or the run's own prompts."""
    if data.prompts == "world":
        return sorted(held_out_captions() + train_captions())
    if data.prompts is not None:
        return read_prompts(data.prompts)
    assert data.images is not None
    return list(scan_images(data.images, strict=data.strict).captions)


def seed_noise(seeds: Sequence[int], latent_shape: tuple[int, int, int]) -> Latents:
    """The noise of each seed, (n, c, h, w) float32 on the CPU: FluxPipeline and StableDiffusionPipeline draw (1, c, h, w) unpacked."""
    return torch.cat(
        [
            torch.randn((1, *latent_shape), generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
    )


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
        return (
            "parti"
            if {"prompt", "category", "challenge"} <= names
            else "drawbench"
            if {"prompts", "category"} <= names
            else "plain"
        )
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
    files = (
        [path]
        if not path.is_dir()
        else [file for style in STYLES for file in _style_files(path, style)]
    )
    if not files:
        raise DirectAlignError(
            f"{path}: holds no {', '.join(f'{style}.json' for style in STYLES)}; give the HPDv2 benchmark's folder, or a list of prompts"
        )
    for file in files:
        style = file.stem.removeprefix("benchmark_")
        for place, prompt in enumerate(_list_of(file), start=1):
            where = f"{file}: item {place}"
            if not isinstance(prompt, str):
                raise DirectAlignError(
                    f"{where}: {type(prompt).__name__} instead of a prompt; HPDv2's files are lists of texts"
                )
            yield PromptRow(checked_prompt(prompt, where), style)


def _style_files(folder: Path, style: str) -> list[Path]:
    return [
        file
        for name in (f"{style}.json", f"benchmark_{style}.json")
        if (file := folder / name).is_file()
    ][:1]


def _list_of(file: Path) -> list[Any]:
    text = read_text(file, "prompt set")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DirectAlignError(
            f"{file}:{line}: not JSON ({error}); HPDv2's files are lists of texts"
        ) from error
    if not isinstance(found, list):
        raise DirectAlignError(
            f"{file}:1: {type(found).__name__} instead of a list; HPDv2's files are lists of texts"
        )
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
            raise DirectAlignError(
                f"{path}:1: no column {name} among {', '.join(map(repr, header))[:200] or 'none'}"
            )
    places = header.index(prompt.lower()), header.index("category")
    for line, fields in list(table(path))[1:]:
        where = f"{path}:{line}"
        blank = not any(fields)
        if not blank and len(fields) <= max(places):
            raise DirectAlignError(
                f"{where}: {len(fields)} fields, and {prompt} and Category are fields {places[0] + 1} and {places[1] + 1}"
            )
        yield (
            PromptRow("")
            if blank
            else PromptRow(
                checked_prompt(fields[places[0]], where), fields[places[1]].strip() or None
            )
        )


def _header(path: Path) -> list[str]:
    return [name.strip().lower() for name in next(table(path), (1, []))[1]]


_READERS: dict[Form, Callable[[str], Iterator[PromptRow]]] = {
    "plain": _plain,
    "geneval": _geneval,
    "hpdv2": _hpdv2,
    "drawbench": _drawbench,
    "parti": _parti,
}
