"""A folder of images, each with a `.txt` of the same name, or with one `metadata.jsonl` for all.

Rows of the latter are {"file_name": ..., "prompt" | "caption" | "text": ...}, as Hugging Face's imagefolder has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..types import DirectAlignError
from .candidates import Candidates, Entry, captioned
from .text_files import json_rows, prompt_of_row, read_text

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".heic", ".avif", ".jxl"}
"""Files taken for images; those that cannot be decoded (.heic, say) are reported, never passed over in silence."""


def in_folder(folder: Path) -> Candidates:
    """The images of a folder in name order, or in the order of its `metadata.jsonl`.

    Raises:
        DirectAlignError: no such folder, metadata that cannot be read, a caption that is not a valid prompt.
    """
    if not folder.is_dir():
        raise DirectAlignError(f"{folder}: no such image folder; check data.images (a dataset is written hf:owner/name)")
    metadata = folder / "metadata.jsonl"
    entries = tuple(_listed(folder, metadata) if metadata.exists() else _beside(folder))
    return Candidates(str(folder), entries, lambda i: folder / entries[i].name, f"none ends in {', '.join(sorted(ENDINGS))}")


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
            raise DirectAlignError(f"{where}: file_name is {name!r:.60}, and the name of an image in {folder} is needed")
        yield captioned(name, prompt_of_row(row, where), where, f"{metadata.name}:{line}")
