"""Folders of images as models of a comparison: what `directalign sample` leaves, or images.jsonl with file, prompt and seed from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.text_files import checked_prompt, json_rows
from ..types import DirectAlignError
from .items import Item
from .sampling import RECORD
from .subjects import Subject

Asked = tuple[str, int]
"""Prompt and seed."""


def items_of_images(subjects: Sequence[Subject], num_pairs: int | None) -> tuple[list[Item], dict[str, list[Path]]]:
    """The items that folders of images have, in the order of the first folder, and every folder's files for them.

    Raises: DirectAlignError where a folder lacks an image of another one, and where images are of different sizes; nothing is decoded.
    """
    folders = {subject.key: _read(Path(subject.source)) for subject in subjects}
    first, *others = subjects
    asked = list(folders[first.key])[:num_pairs]
    for other in others:
        lacking = [each for each in asked if each not in folders[other.key]]
        if num_pairs is None:
            lacking += [each for each in folders[other.key] if each not in folders[first.key]]
        if lacking:
            raise DirectAlignError(_differ(first.source, other.source, lacking))
    files = {key: [found[each] for each in asked] for key, found in folders.items()}
    _check_sizes([file for each in files.values() for file in each])
    return [Item(index, prompt, seed) for index, (prompt, seed) in enumerate(asked)], files


def _differ(first: str, other: str, lacking: Sequence[Asked]) -> str:
    prompt, seed = lacking[0]
    return (
        f"{first} and {other} are not of the same prompts and seeds: {len(lacking)} images are in one alone, "
        f"the first of {prompt!r:.60}, seed {seed}; sample both alike, or take the first ones with --num-pairs"
    )


def _read(folder: Path) -> dict[Asked, Path]:
    """The file of each prompt and seed."""
    found: dict[Asked, Path] = {}
    for line, row in json_rows(folder / RECORD, "record of images"):
        where = f"{folder / RECORD}:{line}"
        asked, file = _row(row, where), folder / str(row["file"])
        if asked in found:
            raise DirectAlignError(f"{where}: {asked[0]!r:.60} with seed {asked[1]} comes twice; keep one of the two")
        if not file.resolve().is_relative_to(folder.resolve()):
            raise DirectAlignError(f"{where}: file {row['file']!r:.80} lies outside {folder}; name a file in it")
        if not file.is_file():
            raise DirectAlignError(f"{where}: {file} is missing; restore it, or take its line out")
        found[asked] = file
    if not found:
        raise DirectAlignError(f"{folder / RECORD}: names no image; give a folder that directalign sample left")
    return found


def _row(row: Mapping[str, Any], where: str) -> Asked:
    kinds = {"file": str, "prompt": str, "seed": int}
    wrong = next((name for name, kind in kinds.items() if not isinstance(row.get(name), kind) or isinstance(row.get(name), bool)), None)
    if wrong is not None:
        raise DirectAlignError(f'{where}: {wrong} is {row.get(wrong)!r:.40}; write {{"file": "a.png", "prompt": "a red star", "seed": 0}}')
    return checked_prompt(row["prompt"], where), row["seed"]


def _check_sizes(files: Sequence[Path]) -> None:
    """One size for all, read from the heads of the files."""
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.setdefault(image.size, file)
        except OSError as error:
            raise DirectAlignError(f"{file}: not readable as an image; restore it, or take its line out of {RECORD}") from error
    if len(sizes) > 1:
        (first, one), (second, other), *_ = sizes.items()
        raise DirectAlignError(f"{one} has {first[0]}x{first[1]} pixels and {other} {second[0]}x{second[1]}: bring all images to one size")
