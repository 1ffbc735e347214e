"""Preference pairs: a prompt, the image that was chosen for it, and the one that was rejected.

    {"prompt": "a red star", "chosen": "images/a.png", "rejected": "images/b.png"}

`directalign arena export --pairs` writes such a file. Paths are relative to it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..io.text import json_rows, prompt_of_row
from ..types import DirectAlignError
from .image_dataset import ImageSet, ImageSource, captioned, usable

PAIRS = "pairs.jsonl"
KEYS = ("chosen", "rejected")


def pairs_file(source: str | Path) -> Path:
    """The file of `data.pairs`: itself, or pairs.jsonl or metadata.jsonl of a folder.

    Raises: DirectAlignError if there is none.
    """
    path = Path(source)
    if not path.is_dir():
        if path.is_file():
            return path
        raise DirectAlignError(
            f"data.pairs: {source}: no such file or folder; give a JSONL of prompt, chosen and "
            "rejected, as directalign arena export --pairs writes it"
        )
    for name in (PAIRS, "metadata.jsonl"):
        if (path / name).is_file():
            return path / name
    raise DirectAlignError(
        f"data.pairs: {source}: holds no {PAIRS}; write one with directalign arena export --pairs"
    )


def scan_pairs(source: str | Path, strict: bool = False) -> ImageSet:
    """Decode both images of every pair once; the set has the chosen ones, and `rejected`.

    Raises:
        DirectAlignError: no such file, a line that names no two images, an invalid prompt, no
            usable pair, or, with `strict`, the first pair with an unreadable image.
    """
    file = pairs_file(source)
    rows = [(line, row, _paths(file, line, row)) for line, row in json_rows(file, "pairs file")]
    entries = tuple(
        captioned(f"line {line}", prompt_of_row(row, where), where, f"line {line}")
        for line, row, where in ((line, row, f"{file}:{line}") for line, row, _ in rows)
    )
    pairs = [paths for *_, paths in rows]
    hint = "it has no lines"
    found = ImageSource(str(file), entries, lambda i: pairs[i][0], hint, lambda i: pairs[i][1])
    return usable(found, strict)


def _paths(file: Path, line: int, row: Mapping[str, Any]) -> tuple[Path, Path]:
    for key in KEYS:
        if not isinstance(row.get(key), str) or not row[key] or "\0" in row[key]:
            raise DirectAlignError(
                f"{file}:{line}: {key} is {row.get(key)!r:.60}, and the path of an image is needed"
            )
    chosen, rejected = (file.parent / row[key] for key in KEYS)
    if chosen == rejected:
        raise DirectAlignError(
            f"{file}:{line}: chosen and rejected are one image, {row['chosen']!r:.60}; name the "
            "image that lost, or remove the line"
        )
    return chosen, rejected
