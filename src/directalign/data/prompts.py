"""Prompt lists: text, JSON lines, tables, parquet, Hugging Face datasets, lists of the package.

`read_prompts` reads and checks a list; `PromptStream` serves its prompts as a pure function of the
step. Lists of the package are `photographs`, and `world` and `world2`, captions of the toy worlds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..config.load import RECIPES
from ..io.text import checked_prompt, json_rows, numbered_lines, prompt_key, prompt_of_row, table
from ..toyworld.worlds import captions_of
from ..types import DirectAlignError
from . import hf_datasets
from .shuffle import indices

Lines = Iterator[tuple[int, str]]
"""(line or row number, text)."""


def read_prompts(source: str | Path) -> list[str]:
    """All prompts of a list in its order, without blank ones.

    Args:
        source: a file, with its format as ending; a dataset, `hf:owner/name[@split][#column]` or
            `hf:folder` (see `hf_datasets`); "photographs"; or captions of a toy world: "world",
            "world:held_out", "world2", "world2:validation", "world2:test", "world2:held_out".
    Raises:
        DirectAlignError: missing, empty or non-UTF-8 file, unknown ending, an error of
            `hf_datasets.open_rows`, a row without a prompt, a prompt over 2,000 characters or with
            a control character; names file and line, or dataset and row.
    """
    captions = captions_of(str(source))
    if captions is not None:
        return captions
    prompts = [prompt for text, where in _rows(source) if (prompt := checked_prompt(text, where))]
    if not prompts:
        raise DirectAlignError(
            f"{source}: no prompts in it; write one a line, or give another list"
        )
    return prompts


@dataclass(frozen=True)
class PromptStream:
    """Endless seeded order over prompts, without state: a batch depends on the arguments only."""

    prompts: Sequence[str]
    seed: int

    def batch(
        self, step: int, size: int = 1, offset: int = 0, global_size: int | None = None
    ) -> tuple[str, ...]:
        """`size` of the `global_size` prompts (default size) of update `step`, from `offset` on."""
        first = step * (size if global_size is None else global_size) + offset
        return tuple(self.prompts[i] for i in indices(len(self.prompts), self.seed, first, size))


def _rows(source: str | Path) -> Iterator[tuple[str, str]]:
    """(text, file and line) of every row."""
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


def _objects(path: Path) -> Lines:
    for line, row in json_rows(path, "prompt file"):
        yield line, prompt_of_row(row, f"{path}:{line}")


def _cells(path: Path) -> Lines:
    """The prompt column of a table; blank lines are blank prompts."""
    rows_below = table(path)
    header = next(rows_below, (1, []))[1]
    column = header.index(prompt_key(header, str(path)))
    for line, row in rows_below:
        blank = not any(row)
        if not blank and len(row) <= column:
            raise DirectAlignError(
                f"{path}:{line}: {len(row)} fields, and {header[column]!r} is field {column + 1}"
            )
        yield line, "" if blank else row[column]


def _parquet(path: Path) -> Lines:
    if not path.is_file():
        raise DirectAlignError(f"{path}: no such prompt file")
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DirectAlignError(
            f"{path}: reading parquet needs pyarrow; pip install 'directalign[data]', or save the "
            "list as .jsonl"
        ) from error
    try:
        names = parquet.read_schema(path).names
        name = prompt_key(names, str(path))
        texts = parquet.read_table(path, columns=[name])[name].to_pylist()
    except (ArrowException, OSError) as error:
        raise DirectAlignError(
            f"{path}: not a readable parquet file ({str(error).splitlines()[0]}); save it again"
        ) from error
    for row, text in enumerate(texts, start=1):
        yield row, prompt_of_row({name: "" if text is None else text}, f"{path}:row {row}")


_READERS: dict[str, Callable[[Path], Lines]] = {
    ".txt": partial(numbered_lines, what="prompt file"),
    ".jsonl": _objects,
    ".csv": _cells,
    ".tsv": _cells,
    ".parquet": _parquet,
}
