"""What a source of images offers before any of them is decoded: names, captions, and where each picture is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..types import DirectAlignError
from .hf_datasets import open_rows
from .image_io import Picture, Unreadable
from .text_files import checked_prompt, json_rows, prompt_of_row, read_text


@dataclass(frozen=True)
class Entry:
    """One image of a source: its name within it, its caption, and why the pair cannot be used (None: it can, so far)."""

    name: str
    caption: str
    fault: str | None = None


@dataclass(frozen=True)
class Candidates:
    """All images of a source in its own order; `where` names it in errors, `picture(i)` gives the i-th without decoding it."""

    where: str
    entries: tuple[Entry, ...]
    picture: Callable[[int], Picture]
    hint: str
    """What to check when there is none."""


def captioned(name: str, text: str, where: str, blank: str) -> Entry:
    """An entry whose caption was found at `where`; a blank one is its fault, one that is no valid prompt is refused."""
    caption = checked_prompt(text, where)
    return Entry(name, caption, None if caption else f"no caption: {blank} is blank")


def in_dataset(source: str) -> Candidates:
    """The images of `hf:owner/name[@split][#captions]` or `hf:folder[...]`, in the order of their rows.

    Raises:
        DirectAlignError: whatever `rows.open_rows` refuses, no column of images or of captions, a caption that is not a valid prompt.
    """
    from datasets import Image

    opened = open_rows(source)
    column = opened.image_column()
    encoded = opened.table.select_columns([column]).cast_column(column, Image(decode=False))
    entries = tuple(
        captioned(f"row {row}", text, f"{source}: row {row}", "its text")
        for row, text in opened.texts()
    )
    return Candidates(source, entries, lambda i: _picture(encoded[i][column]), "it has no rows")


def _picture(cell: dict[str, Any] | None) -> Picture:
    """A cell of a column of images: encoded bytes, or the path of a file."""
    held = cell or {}
    if held.get("bytes") is not None:
        return held["bytes"]
    if held.get("path") is None:
        raise Unreadable("no image in this row")
    return Path(held["path"])


ENDINGS = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
    ".heic",
    ".avif",
    ".jxl",
}
"""Files taken for images; those that cannot be decoded (.heic, say) are reported, never passed over in silence."""


def in_folder(folder: Path) -> Candidates:
    """The images of a folder in name order, or in the order of its `metadata.jsonl`.

    Raises:
        DirectAlignError: no such folder, metadata that cannot be read, a caption that is not a valid prompt.
    """
    if not folder.is_dir():
        raise DirectAlignError(
            f"{folder}: no such image folder; check data.images (a dataset is written hf:owner/name)"
        )
    metadata = folder / "metadata.jsonl"
    entries = tuple(_listed(folder, metadata) if metadata.exists() else _beside(folder))
    return Candidates(
        str(folder),
        entries,
        lambda i: folder / entries[i].name,
        f"none ends in {', '.join(sorted(ENDINGS))}",
    )


def _beside(folder: Path) -> Iterator[Entry]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in ENDINGS or file.name.startswith("."):
            continue
        name, text = str(file.relative_to(folder)), file.with_suffix(".txt")
        if text.is_file():
            yield captioned(name, read_text(text, "caption file"), str(text), text.name)
        else:
            yield Entry(name, "", f"no caption: {text.name} is missing")


def _listed(folder: Path, metadata: Path) -> Iterator[Entry]:
    for line, row in json_rows(metadata, "metadata file"):
        where = f"{metadata}:{line}"
        name = row.get("file_name")
        if not isinstance(name, str):
            raise DirectAlignError(
                f"{where}: file_name is {name!r:.60}, and the name of an image in {folder} is needed"
            )
        yield captioned(name, prompt_of_row(row, where), where, f"{metadata.name}:{line}")
