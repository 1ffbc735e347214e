"""Preference pairs: a prompt, the image that was chosen for it, and the one that was rejected.

    {"prompt": "a red star", "chosen": "images/a.png", "rejected": "images/b.png"}

`directalign arena export --pairs` writes such a file. Paths are relative to it.
"""

from pathlib import Path

from ..types import DirectAlignError
from .image_dataset import ImageSet, ImageSource, in_list, usable

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
    entries, pairs = in_list(file, "pairs file", KEYS)
    for entry, pair in zip(entries, pairs, strict=True):
        if pair["chosen"] == pair["rejected"]:
            line = entry.name.removeprefix("line ")
            raise DirectAlignError(
                f"{file}:{line}: chosen and rejected are one image, {pair[KEYS[0]].name!r}; "
                "name the image that lost, or remove the line"
            )
    hint = "it has no lines"
    found = ImageSource(
        str(file), entries, lambda i: pairs[i]["chosen"], hint, "chosen", lambda i: pairs[i]
    )
    return usable(found, strict)
