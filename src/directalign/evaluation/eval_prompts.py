"""Evaluation prompts: fixed prompt-seed pairs, prompt sets of benchmarks, control prompts, samples.

Formats: plain lists, GenEval's `evaluation_metadata.jsonl` (djghosh13/geneval, arXiv 2310.11513),
the HPDv2 benchmark, DrawBench and PartiPrompts. GenEval's lines list what an image must show (and
not show):

    {"tag": "position", "include": [{"class": "kite", "count": 1},
        {"class": "wine glass", "count": 1, "position": ["above", 0]}], "prompt": ...}
    {"tag": "counting", "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}], "prompt": ...}

Control prompts are prompts that training has nothing to do with: what changes on them has leaked.
Their images get the same metrics as all others, under names that begin with `off_topic_`. Those of
the toy world are held-out captions in a style of their own ("Oil painting. a red star ..."), a
style that no positive control phrase of the run names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .. import config
from ..data.edits import scan_edits
from ..data.hf_datasets import is_address
from ..data.image_dataset import ImageSet, scan_images
from ..data.image_io import Source
from ..data.pairs import scan_pairs
from ..data.prompts import read_prompts
from ..data.shuffle import permutation
from ..errors import named
from ..io.text import checked_prompt, json_rows, prompt_of_row, read_text, table
from ..toyworld.worlds import WORLDS, captions_of
from ..types import DirectAlignError, Latents

FIRST_SEED = 10_000


@dataclass(frozen=True)
class Pairs:
    """Prompts and seeds, equally long; the first m of n fixed pairs are the m fixed pairs.

    `group`: of their samples, `CONTROL_GROUP` or None. `sources`: what each prompt edits; empty for
    prompts alone.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    group: str | None = None
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.seeds):
            raise DirectAlignError(
                f"{len(self.prompts)} prompts and {len(self.seeds)} seeds do not make pairs: "
                "give one seed per prompt"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, count: int) -> Pairs:
        """The first `count` pairs."""
        return Pairs(self.prompts[:count], self.seeds[:count], self.group, self.sources[:count])

    def asked(self, *phrases: str) -> Pairs:
        """The pairs with the phrases, in turn, before their prompts: "Realistic photo. a star"."""
        turns = zip(cycle(phrases), self.prompts, strict=False)
        prompts = tuple(f"{phrase}. {prompt}" for phrase, prompt in turns)
        return Pairs(prompts, self.seeds, self.group, self.sources)


def fixed_pairs(prompts: Sequence[str], num_samples: int, sources: Sequence[Source] = ()) -> Pairs:
    """`num_samples` pairs: the prompts, with the source of each if they edit images, in a fixed
    shuffled order, repeated with new seeds."""
    order = permutation(len(prompts), seed=0, epoch=0)
    places = [order[i % len(order)] for i in range(num_samples)]
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + num_samples))
    chosen = tuple(prompts[place] for place in places)
    return Pairs(chosen, seeds, sources=tuple(sources[place] for place in places if sources))


def measured_prompts(run: config.RunConfig) -> list[str]:
    """The prompts of a run's evaluations: `evaluate.prompts`, else those of its data.

    Raises: DirectAlignError for an unreadable list, beginning with the key if it is the former.
    """
    data = run.data
    if (edits := _measured_edits(run)) is not None:
        return list(edits.captions)
    if run.evaluate.prompts is not None:
        try:
            return prompts_to_measure(run.evaluate.prompts)
        except DirectAlignError as error:
            raise DirectAlignError(f"evaluate.prompts: {error}") from error
    if data.prompts is not None:
        return prompts_to_measure(data.prompts)
    if data.pairs is not None:
        return list(dict.fromkeys(scan_pairs(data.pairs, strict=data.strict).captions))
    assert data.images is not None
    return list(scan_images(data.images, strict=data.strict).captions)


def measured_edits(run: config.RunConfig) -> list[Source]:
    """What each of `measured_prompts` edits; empty for prompts alone. Raises: as these."""
    edits = _measured_edits(run)
    return [] if edits is None else [edits.source(place) for place in range(len(edits))]


def measured_rows(run: config.RunConfig) -> list[PromptRow]:
    """`measured_prompts`, with what they edit. Raises: as these."""
    if (edits := _measured_edits(run)) is not None:
        return _edit_rows(edits)
    return [PromptRow(prompt) for prompt in measured_prompts(run)]


def read_edits(file: str) -> list[PromptRow]:
    """The rows of a file of edits. Raises: as `scan_edits`."""
    return _edit_rows(scan_edits(file))


def _edit_rows(edits: ImageSet) -> list[PromptRow]:
    return [
        PromptRow(prompt, source=edits.source(place)) for place, prompt in enumerate(edits.captions)
    ]


def _measured_edits(run: config.RunConfig) -> ImageSet | None:
    if run.data.edits is None:
        return None
    if run.evaluate.prompts is None:
        return scan_edits(run.data.edits, strict=run.data.strict)
    with named("evaluate.prompts"):
        return scan_edits(run.evaluate.prompts, strict=run.data.strict)


def measured_source(run: config.RunConfig) -> tuple[str, str]:
    """The key that says where `measured_prompts` are read, and its value."""
    sources = {
        "evaluate.prompts": run.evaluate.prompts,
        "data.prompts": run.data.prompts,
        "data.images": run.data.images,
        "data.pairs": run.data.pairs,
        "data.edits": run.data.edits,
    }
    return next((key, source) for key, source in sources.items() if source is not None)


def prompts_to_measure(source: str) -> list[str]:
    """The prompts of a list, as `read_prompts`; of a toy world those that runs are measured on: all
    captions of `world`, the validation captions of `world2`."""
    if source in WORLDS:
        return sorted(WORLDS[source].scenes.measured_captions())
    return read_prompts(source)


def seed_noise(seeds: Sequence[int], latent_shape: tuple[int, int, int]) -> Latents:
    """The noise of each seed as diffusers pipelines draw it, (n, c, h, w) float32 on the CPU."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.cat([torch.randn((1, *latent_shape), generator=each) for each in generators])


Form = Literal["plain", "geneval", "hpdv2", "drawbench", "parti"]
STYLES = ("anime", "concept-art", "paintings", "photo")
"""The styles of the HPDv2 benchmark, which name its files (optionally after `benchmark_`)."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt, its group in the set (None in a list), GenEval's `checked_facts` or {}, and what it
    edits."""

    prompt: str
    group: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None


def read_prompt_set(source: str | Path) -> tuple[PromptRow, ...]:
    """The rows of a set; its form is recognised by content, or given as in `geneval:FILE`.

    Args:
        source: a file or folder of one of the forms, or anything that `read_prompts` reads (a list,
            `hf:...`, world).
    Raises:
        DirectAlignError: as `read_prompts`, and for invalid content; names file and line.
    """
    prefix, _, path = str(source).partition(":")
    form: Form | None = next((each for each in _READERS if each == prefix != "plain"), None)
    if form is None:
        path = str(source)
        form = _recognised(path)
    rows = tuple(row for row in _READERS[form](path) if row.prompt)
    if not rows:
        raise DirectAlignError(f"{source}: no prompts in it; give another set")
    return rows


def _recognised(source: str) -> Form:
    path = Path(source)
    if captions_of(source) is not None or is_address(source) or not path.exists():
        return "plain"
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".json":
        return "hpdv2"
    if suffix == ".jsonl":
        first = next(json_rows(path, "prompt set"), (0, {}))[1]
        return "geneval" if {"tag", "include"} <= first.keys() else "plain"
    names = set(_header(path)) if suffix in (".csv", ".tsv") else set()
    if {"prompt", "category", "challenge"} <= names:
        return "parti"
    return "drawbench" if {"prompts", "category"} <= names else "plain"


def _geneval(source: str) -> Iterator[PromptRow]:
    for line, row in json_rows(Path(source), "prompt set"):
        where = f"{source}:{line}"
        facts = checked_facts(row, where)
        yield PromptRow(checked_prompt(prompt_of_row(row, where), where), facts["tag"], facts)


def _hpdv2(source: str) -> Iterator[PromptRow]:
    """A folder with a file per style, in the order of `STYLES`, or one such file."""
    path = Path(source)
    files = [path]
    if path.is_dir():
        names = [[path / f"{style}.json", path / f"benchmark_{style}.json"] for style in STYLES]
        files = [file for both in names for file in [each for each in both if each.is_file()][:1]]
    if not files:
        raise DirectAlignError(
            f"{path}: holds no {', '.join(f'{style}.json' for style in STYLES)}; "
            "give the HPDv2 benchmark's folder, or a list of prompts"
        )
    for file in files:
        style = file.stem.removeprefix("benchmark_")
        try:
            prompts = _TEXTS.validate_json(read_text(file, "prompt set"))
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{file}: item {first['loc'][0] + 1}" if first["loc"] else f"{file}"  # type: ignore[operator]
            raise DirectAlignError(
                f"{where}: {first['msg']}; HPDv2's files are lists of texts"
            ) from error
        for place, prompt in enumerate(prompts, start=1):
            yield PromptRow(checked_prompt(prompt, f"{file}: item {place}"), style)


_TEXTS = TypeAdapter(list[str], config=ConfigDict(strict=True))


def _table(source: str, prompt: str) -> Iterator[PromptRow]:
    """The rows of a table with columns of prompts and categories; blank lines stay blank."""
    path = Path(source)
    header = _header(path)
    for name in (prompt, "Category"):
        if name.lower() not in header:
            listed = ", ".join(map(repr, header))[:200] or "none"
            raise DirectAlignError(f"{path}:1: no column {name} among {listed}")
    prompts, categories = header.index(prompt.lower()), header.index("category")
    for line, fields in list(table(path))[1:]:
        where = f"{path}:{line}"
        if not any(fields):
            yield PromptRow("")
        elif len(fields) <= max(prompts, categories):
            raise DirectAlignError(
                f"{where}: {len(fields)} fields, and {prompt} and Category are fields "
                f"{prompts + 1} and {categories + 1}"
            )
        else:
            group = fields[categories].strip() or None
            yield PromptRow(checked_prompt(fields[prompts], where), group)


def _header(path: Path) -> list[str]:
    return [name.strip().lower() for name in next(table(path), (1, []))[1]]


_READERS: dict[Form, Callable[[str], Iterator[PromptRow]]] = {
    "plain": lambda source: map(PromptRow, read_prompts(source)),
    "geneval": _geneval,
    "hpdv2": _hpdv2,
    "drawbench": lambda source: _table(source, "Prompts"),
    "parti": lambda source: _table(source, "Prompt"),
}


Relation = Literal["left of", "right of", "above", "below"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)


class _Thing(BaseModel):
    """What an image must show; `position` is to the n-th thing of "include", an earlier one."""

    model_config = ConfigDict(strict=True)
    kind: str = Field(alias="class", min_length=1)
    count: int = Field(ge=1)
    color: str | None = None
    position: tuple[Relation, Annotated[int, Field(ge=0)]] | None = None


class _Facts(BaseModel):
    model_config = ConfigDict(strict=True)
    tag: str = Field(min_length=1)
    include: list[_Thing] = Field(min_length=1)
    exclude: list[_Thing] = []


def checked_facts(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """{"tag", "include", "exclude"}, lists of {"class", "count", "color"?, "position"?}.

    "position" is [relation of `RELATIONS`, n], to the n-th of "include", an earlier one.

    Raises: DirectAlignError for anything else, beginning with `where`.
    """
    try:
        facts = _Facts.model_validate_json(json.dumps(row))
    except ValidationError as error:
        first = error.errors()[0]
        loc = "".join(f"[{n}]" if isinstance(n, int) else f".{n}" for n in first["loc"])[1:]
        found = "missing" if first["type"] == "missing" else f"{first['input']!r:.60}"
        raise DirectAlignError(
            f"{where}: {loc} is {found}: {first['msg']}, as in GenEval"
        ) from None
    for place, thing in enumerate(facts.include):
        if thing.position is not None and thing.position[1] >= place:
            raise DirectAlignError(
                f"{where}: include[{place}].position is {list(thing.position)}; name an earlier "
                "object, counted from 0"
            )
    return facts.model_dump(mode="json", by_alias=True, exclude_none=True)


CONTROL_KEY = "evaluate.control_prompts"
FIRST_CONTROL_SEED = 3 * FIRST_SEED
CONTROL_GROUP = "control_prompts"


def read_control_prompts(source: str, phrases: config.ControlPhrases) -> list[str]:
    """The prompts of a recipe's `evaluate.control_prompts`.

    Raises: DirectAlignError for an unreadable list, and for a toy world if the positive phrases
    name every style of it.
    """
    if source not in WORLDS:
        try:
            return read_prompts(source)
        except DirectAlignError as error:
            raise DirectAlignError(f"{CONTROL_KEY}: {error}") from error
    wanted = set(phrases.positive)
    world = WORLDS[source]
    others = [names[0] for names in world.scenes.STYLE_WORDS.values() if not set(names) & wanted]
    if not others:
        raise DirectAlignError(
            f"{CONTROL_KEY}: {source}: method.control_phrases.positive names every style of "
            f"{world.title}, so none of its prompts is off topic; give a file of prompts"
        )
    captions = world.scenes.held_out_captions()
    return [f"{phrase}. {caption}" for caption in captions for phrase in others]


def control_pairs(prompts: Sequence[str], count: int) -> Pairs:
    """`count` pairs in the fixed shuffled order, with seeds that no other evaluation uses."""
    seeds = tuple(range(FIRST_CONTROL_SEED, FIRST_CONTROL_SEED + count))
    return Pairs(fixed_pairs(prompts, count).prompts, seeds, CONTROL_GROUP)


def named_styles(prompts: Sequence[str]) -> tuple[str, ...]:
    """The toy worlds' style that each prompt begins with."""
    named = (world.scenes.STYLE_WORDS.items() for world in WORLDS.values())
    style_of = {phrases[0]: style for words in named for style, phrases in words}
    return tuple(style_of[prompt.split(". ")[0]] for prompt in prompts)


SEEDS_PER_PROMPT = 2
"""Default; the smallest number that shows diversity within a prompt."""


@dataclass(frozen=True)
class EvalSample:
    """One image per candidate: index, prompt, seed, group of the prompt set, GenEval's facts or {},
    and what the prompt edits."""

    index: int
    prompt: str
    seed: int
    group: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None

    @property
    def is_control(self) -> bool:
        """Whether training is unrelated to the prompt."""
        return self.group == CONTROL_GROUP

    @property
    def task(self) -> str:
        """The prompt and the file that it edits: images of one task differ by their seeds alone."""
        return self.prompt if self.source is None else f"{self.prompt}\n{self.source.image}"


def samples_of(pairs: Pairs, first: int = 0) -> list[EvalSample]:
    """Samples of prompt-seed pairs, with indices from `first`."""
    sources = pairs.sources or (None,) * len(pairs)
    numbered = enumerate(zip(pairs.prompts, pairs.seeds, sources, strict=True), start=first)
    return [
        EvalSample(index, prompt, seed, pairs.group, source=source)
        for index, (prompt, seed, source) in numbered
    ]


def samples_of_rows(
    rows: Sequence[PromptRow], num_samples: int | None, seeds_per_prompt: int = SEEDS_PER_PROMPT
) -> list[EvalSample]:
    """Each prompt with its own seeds, grouped by prompt, prompts in the fixed shuffled order.

    `num_samples` None: all prompts. A number uses as many prompts as it needs; if there are too
    few, each gets more seeds.
    """
    count = len(rows) * seeds_per_prompt if num_samples is None else num_samples
    each = max(seeds_per_prompt, -(-count // len(rows)))
    order = permutation(len(rows), seed=0, epoch=0)
    chosen = [rows[order[place // each]] for place in range(count)]
    return [
        EvalSample(index, row.prompt, FIRST_SEED + index, row.group, row.facts, row.source)
        for index, row in enumerate(chosen)
    ]


def control_samples(
    source: str, phrases: config.ControlPhrases, first: int, count: int
) -> list[EvalSample]:
    """`count` samples of control prompts with indices from `first`; prompts repeat if too few."""
    return samples_of(control_pairs(read_control_prompts(source, phrases), count), first)


def batches(samples: Sequence[EvalSample], size: int) -> list[list[EvalSample]]:
    """Batches of about `size` that never split a task nor mix control prompts with others."""
    by_task: dict[tuple[bool, str], list[EvalSample]] = {}
    for sample in samples:
        by_task.setdefault((sample.is_control, sample.task), []).append(sample)
    found: list[list[EvalSample]] = []
    for (control, _), own in by_task.items():
        if not found or found[-1][0].is_control != control or len(found[-1]) + len(own) > size:
            found.append([])
        found[-1].extend(own)
    return found
