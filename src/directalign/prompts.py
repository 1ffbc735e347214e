"""Prompt lists: .txt, .jsonl, .csv, .tsv, .parquet, or `world` for the captions of the embedded world.

`read_prompts` refuses a broken list before anything is loaded; `PromptStream` deals the prompts out, step by step, as a pure
function of the step.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .order import indices
from .texts import PROMPT_KEYS, checked_prompt, json_rows, prompt_key, prompt_of_row, read_text
from .types import DirectAlignError
from .world.scenes import all_captions

HELD_OUT_EVERY = 7
"""Every seventh caption of the embedded world is kept for measuring and never trained on. Seven shares no factor with the
numbers of colours, shapes and backgrounds, so every word is held out in some captions and trained on in others."""

Rows = Iterator[tuple[int, str]]


def train_captions() -> list[str]:
    """The 205 captions of the embedded world that are trained on."""
    return [text for i, text in enumerate(all_captions()) if i % HELD_OUT_EVERY]


def held_out_captions() -> list[str]:
    """The 35 captions of the embedded world that no alignment sees."""
    return all_captions()[::HELD_OUT_EVERY]


def read_prompts(source: str | Path) -> list[str]:
    """All prompts of a list, in its own order, blank ones left out.

    Args:
        source: a file, its format told by its ending, or "world" for `train_captions()`.
    Raises:
        DirectAlignError: missing, empty or non-UTF-8 file, unknown ending, a row without a prompt, a prompt over 2,000
            characters or with a control character; names file and line.
    """
    if source == "world":
        return train_captions()
    path = Path(source)
    if path.suffix.lower() not in _READERS:
        raise DirectAlignError(f"{path}: prompt lists end in {', '.join(_READERS)} (or write world); got {path.suffix or 'no ending'!r}")
    rows = _READERS[path.suffix.lower()](path)
    checked = (checked_prompt(text, f"{path}:{line}") for line, text in rows)
    prompts = [prompt for prompt in checked if prompt]
    if not prompts:
        raise DirectAlignError(f"{path}: no prompts in it; write one a line, or give another data.prompts")
    return prompts


@dataclass(frozen=True)
class PromptStream:
    """An endless, seeded order over prompts without state: the same arguments give the same batch, in any process."""

    prompts: Sequence[str]
    seed: int

    def batch(self, step: int, rank: int = 0, world_size: int = 1, size: int = 1, micro: int = 0, accumulation: int = 1) -> tuple[str, ...]:
        """The `size` prompts of micro-batch `micro` (of `accumulation`) at update `step` on `rank` (of `world_size`)."""
        places = indices(len(self.prompts), self.seed, step=step, rank=rank, world_size=world_size, size=size, micro=micro, accumulation=accumulation)
        return tuple(self.prompts[i] for i in places)


def _lines(path: Path) -> Rows:
    yield from enumerate(read_text(path, "prompt file").split("\n"), start=1)


def _objects(path: Path) -> Rows:
    for line, row in json_rows(path, "prompt file"):
        yield line, prompt_of_row(row, f"{path}:{line}")


def _table(path: Path) -> Rows:
    """Comma- or tab-separated values with a header; a field that opens with a quote runs to the closing one."""
    text = io.StringIO(read_text(path, "prompt file"), newline="")
    reader = csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        header = next(reader, [])
        column = _column(path, header)
        for row in reader:
            if row and len(row) <= column:
                raise DirectAlignError(f"{path}:{reader.line_num}: {len(row)} fields, and {header[column]!r} is field {column + 1}")
            yield reader.line_num, row[column] if row else ""
    except csv.Error as error:
        raise DirectAlignError(f"{path}:{reader.line_num}: not a table ({error}); quote fields that hold a separator") from error


def _parquet(path: Path) -> Rows:
    if not path.is_file():
        raise DirectAlignError(f"{path}: no such prompt file")
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DirectAlignError(f"{path}: reading parquet needs pyarrow; pip install 'directalign[data]', or save the list as .jsonl") from error
    try:
        names = parquet.read_schema(path).names
        name = names[_column(path, names)]
        texts = parquet.read_table(path, columns=[name])[name].to_pylist()
    except (ArrowException, OSError) as error:
        raise DirectAlignError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]}); save it again") from error
    for row, text in enumerate(texts, start=1):
        yield row, prompt_of_row({name: "" if text is None else text}, f"{path}:row {row}")


def _column(path: Path, header: list[str]) -> int:
    name = prompt_key(header)
    if name is None:
        raise DirectAlignError(f"{path}: no column {', '.join(PROMPT_KEYS[:-1])} or {PROMPT_KEYS[-1]} among {', '.join(map(repr, header))[:200] or 'none'}")
    return header.index(name)


_READERS: dict[str, Callable[[Path], Rows]] = {".txt": _lines, ".jsonl": _objects, ".csv": _table, ".tsv": _table, ".parquet": _parquet}
