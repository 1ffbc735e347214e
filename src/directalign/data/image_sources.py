"""Images of a folder or a dataset before decoding: names, captions, and how to open each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.text import json_rows, read_text
from ..types import DirectAlignError
from .hf_datasets import open_rows
from .image_io import Picture, Unreadable
from .text_files import checked_prompt, prompt_of_row

ENDINGS = set(
    ".jpg .jpeg .png .webp .bmp .tif .tiff .gif .ppm .pgm .heic .avif .jxl".split()  # noqa: SIM905
)
"""Endings of image files; those that cannot be decoded (.heic) are reported, not ignored."""


@dataclass(frozen=True)
class Entry:
    """One image: its name in the source, its caption, and why it cannot be used, if known."""

    name: str
    caption: str
    fault: str | None = None


@dataclass(frozen=True)
class ImageSource:
    """All images of a source in order; `where` names it in errors, `picture(i)` opens the i-th."""

    where: str
    entries: tuple[Entry, ...]
    picture: Callable[[int], Picture]
    hint: str
    """What to check when there are no images."""


def _captioned(name: str, text: str, where: str, blank: str) -> Entry:
    """An entry with its caption; a blank caption is a fault, an invalid one raises."""
    caption = checked_prompt(text, where)
    return Entry(name, caption, None if caption else f"no caption: {blank} is blank")


def in_dataset(source: str) -> ImageSource:
    """The images of `hf:owner/name[@split][#captions]` or `hf:folder[...]`, in row order.

    Raises:
        DirectAlignError: as `hf_datasets.open_rows`; no column of images or of captions; an invalid
            caption.
    """
    from datasets import Image

    opened = open_rows(source)
    column = opened.image_column()
    encoded = opened.table.select_columns([column]).cast_column(column, Image(decode=False))
    entries = tuple(
        _captioned(f"row {row}", text, f"{source}: row {row}", "its text")
        for row, text in opened.texts()
    )
    return ImageSource(source, entries, lambda i: _picture(encoded[i][column]), "it has no rows")


def _picture(cell: dict[str, Any] | None) -> Picture:
    """A cell of an image column: encoded bytes, or the path of a file."""
    cell = cell or {}
    if cell.get("bytes") is not None:
        return cell["bytes"]
    if cell.get("path") is None:
        raise Unreadable("no image in this row")
    return Path(cell["path"])


def in_folder(folder: Path) -> ImageSource:
    """The images of a folder by name, or in the order of its `metadata.jsonl`.

    Raises:
        DirectAlignError: no such folder, unreadable metadata, an invalid caption.
    """
    if not folder.is_dir():
        raise DirectAlignError(
            f"{folder}: no such image folder; check data.images (a dataset is written "
            "hf:owner/name)"
        )
    metadata = folder / "metadata.jsonl"
    entries = tuple(_from_metadata(folder, metadata) if metadata.exists() else _from_files(folder))
    hint = f"none ends in {', '.join(sorted(ENDINGS))}"
    return ImageSource(str(folder), entries, lambda i: folder / entries[i].name, hint)


def _from_files(folder: Path) -> Iterator[Entry]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in ENDINGS or file.name.startswith("."):
            continue
        name, text = str(file.relative_to(folder)), file.with_suffix(".txt")
        if text.is_file():
            yield _captioned(name, read_text(text, "caption file"), str(text), text.name)
        else:
            yield Entry(name, "", f"no caption: {text.name} is missing")


def _from_metadata(folder: Path, metadata: Path) -> Iterator[Entry]:
    for line, row in json_rows(metadata, "metadata file"):
        where, name = f"{metadata}:{line}", row.get("file_name")
        if not isinstance(name, str):
            raise DirectAlignError(
                f"{where}: file_name is {name!r:.60}, and the name of an image in {folder} is "
                "needed"
            )
        yield _captioned(name, prompt_of_row(row, where), where, f"{metadata.name}:{line}")
