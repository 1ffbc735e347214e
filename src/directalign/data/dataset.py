"""Images of a Hugging Face dataset with a column of images and one of captions: read from disk one by one, decoded by us.

The library hands out the encoded bytes, so a dataset's images go through the same decoder as files and are never all in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .candidates import Candidates, captioned
from .hf_datasets import open_rows
from .image_io import Picture, Unreadable


def in_dataset(source: str) -> Candidates:
    """The images of `hf:owner/name[@split][#captions]` or `hf:folder[...]`, in the order of their rows.

    Raises:
        DirectAlignError: whatever `rows.open_rows` refuses, no column of images or of captions, a caption that is not a valid prompt.
    """
    from datasets import Image

    opened = open_rows(source)
    column = opened.image_column()
    encoded = opened.table.select_columns([column]).cast_column(column, Image(decode=False))
    entries = tuple(captioned(f"row {row}", text, f"{source}: row {row}", "its text") for row, text in opened.texts())
    return Candidates(source, entries, lambda i: _picture(encoded[i][column]), "it has no rows")


def _picture(cell: dict[str, Any] | None) -> Picture:
    """A cell of a column of images: encoded bytes, or the path of a file."""
    held = cell or {}
    if held.get("bytes") is not None:
        return held["bytes"]
    if held.get("path") is None:
        raise Unreadable("no image in this row")
    return Path(held["path"])
