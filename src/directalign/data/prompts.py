"""Prompt lists: .txt, .jsonl, .csv, .tsv, .parquet, a Hugging Face dataset, or `world` for the captions of the embedded world.

`read_prompts` refuses a broken list before anything is loaded; `PromptStream` deals the prompts out, step by step, as a pure
function of the step.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.load import RECIPES
from ..toyworld.scenes import all_captions
from ..types import DirectAlignError
from . import hf_datasets
from .shuffle import indices
from .text_files import PROMPT_KEYS, checked_prompt, json_rows, prompt_key, prompt_of_row, read_text

HELD_OUT_EVERY = 7
"""Every seventh caption of the embedded world is kept for measuring and never trained on. Seven shares no factor with the
numbers of colours, shapes and backgrounds, so every word is held out in some captions and trained on in others."""

Lines = Iterator[tuple[int, str]]
"""(line or row number, its text), as a reader yields them."""


def train_captions() -> list[str]:
    """The 205 captions of the embedded world that are trained on."""
    return [text for i, text in enumerate(all_captions()) if i % HELD_OUT_EVERY]


def held_out_captions() -> list[str]:
    """The 35 captions of the embedded world that no alignment sees."""
    return all_captions()[::HELD_OUT_EVERY]


def read_prompts(source: str | Path) -> list[str]:
    """All prompts of a list, in its own order, blank ones left out.

    Args:
        source: a file, its format told by its ending; a dataset, `hf:owner/name[@split][#column]` or `hf:folder`, as `rows`
            describes it; or "world" for `train_captions()`.
    Raises:
        DirectAlignError: missing, empty or non-UTF-8 file, unknown ending, whatever `rows.open_rows` refuses, a row without
            a prompt, a prompt over 2,000 characters or with a control character; names file and line, or dataset and row.
    """
    if source == "world":
        return train_captions()
    prompts = [prompt for text, where in _placed(source) if (prompt := checked_prompt(text, where))]
    if not prompts:
        raise DirectAlignError(
            f"{source}: no prompts in it; write one a line, or give another list"
        )
    return prompts


@dataclass(frozen=True)
class PromptStream:
    """An endless, seeded order over prompts without state: the same arguments give the same batch, in any process."""

    prompts: Sequence[str]
    seed: int

    def batch(
        self, step: int, size: int = 1, place: int = 0, total: int | None = None
    ) -> tuple[str, ...]:
        """`size` of the `total` prompts of update `step`, from the `place`-th on; without `total` they are the whole update."""
        first = step * (size if total is None else total) + place
        return tuple(self.prompts[i] for i in indices(len(self.prompts), self.seed, first, size))


def _placed(source: str | Path) -> Iterator[tuple[str, str]]:
    """(text, where it stands) of every row."""
    if hf_datasets.is_address(source):
        opened = hf_datasets.open_rows(str(source))
        return ((text, f"{source}: row {number}") for number, text in opened.texts())
    path = Path(source)
    packaged = RECIPES / "prompts" / f"{source}.txt"
    if not path.suffix and packaged.exists():
        path = packaged
    if path.suffix.lower() not in _READERS:
        endings = ", ".join(_READERS)
        raise DirectAlignError(
            f"{path}: prompt lists end in {endings} (or write world, photographs, or hf:owner/name "
            f"for a dataset); got {path.suffix or 'no ending'!r}"
        )
    return ((text, f"{path}:{line}") for line, text in _READERS[path.suffix.lower()](path))


def _lines(path: Path) -> Lines:
    yield from enumerate(read_text(path, "prompt file").split("\n"), start=1)


def _objects(path: Path) -> Lines:
    for line, row in json_rows(path, "prompt file"):
        yield line, prompt_of_row(row, f"{path}:{line}")


def table(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, its fields) of a .csv or .tsv file, from the header on.

    Comma-separated: a field that opens with a quote runs to the closing one. Tab-separated: one row a line, and a quote is a
    letter like others, unless quotes wrap the whole field. Raises DirectAlignError for what cannot be read so.
    """
    return _comma_separated(path) if path.suffix.lower() == ".csv" else _tab_separated(path)


def _cells(path: Path) -> Lines:
    """The cells of a table's prompt column; blank lines are blank prompts."""
    rows_below = table(path)
    header = next(rows_below, (1, []))[1]
    column = _column(path, header)
    for line, row in rows_below:
        blank = not any(row)
        if not blank and len(row) <= column:
            raise DirectAlignError(
                f"{path}:{line}: {len(row)} fields, and {header[column]!r} is field {column + 1}"
            )
        yield line, "" if blank else row[column]


def _comma_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path, "prompt file"), newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DirectAlignError(
            f"{path}:{reader.line_num}: not a table ({error}); quote fields that hold a separator"
        ) from error


def _tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    for line, row in enumerate(read_text(path, "prompt file").split("\n"), start=1):
        yield line, [_unwrapped(field, f"{path}:{line}") for field in row.rstrip("\r").split("\t")]


def _unwrapped(field: str, where: str) -> str:
    """A field without the quotes that spreadsheets wrap it in (those inside are doubled); any other is left as it is."""
    wrapped = re.fullmatch(r'"((?:[^"]|"")*)"', field)
    if wrapped:
        return wrapped[1].replace('""', '"')
    if field.startswith('"') and field.count('"') % 2:
        raise DirectAlignError(
            f"{where}: a quote opens a field and does not close on this line; write one row a line, or save the table as .csv"
        )
    return field


def _parquet(path: Path) -> Lines:
    if not path.is_file():
        raise DirectAlignError(f"{path}: no such prompt file")
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DirectAlignError(
            f"{path}: reading parquet needs pyarrow; pip install 'directalign[data]', or save the list as .jsonl"
        ) from error
    try:
        names = parquet.read_schema(path).names
        name = names[_column(path, names)]
        texts = parquet.read_table(path, columns=[name])[name].to_pylist()
    except (ArrowException, OSError) as error:
        raise DirectAlignError(
            f"{path}: not a readable parquet file ({str(error).splitlines()[0]}); save it again"
        ) from error
    for row, text in enumerate(texts, start=1):
        yield row, prompt_of_row({name: "" if text is None else text}, f"{path}:row {row}")


def _column(path: Path, header: list[str]) -> int:
    name = prompt_key(header)
    if name is None:
        raise DirectAlignError(
            f"{path}: no column {', '.join(PROMPT_KEYS[:-1])} or {PROMPT_KEYS[-1]} among {', '.join(map(repr, header))[:200] or 'none'}"
        )
    return header.index(name)


_READERS: dict[str, Callable[[Path], Lines]] = {
    ".txt": _lines,
    ".jsonl": _objects,
    ".csv": _cells,
    ".tsv": _cells,
    ".parquet": _parquet,
}
