"""What is to be judged, read from disk: a comparison folder (comparison.json, results.jsonl, images/), or folders of images with equal prompts.

A folder of images is what `directalign sample` leaves (images.jsonl). A record may name only real files inside its own folder: `..`,
absolute paths and symbolic links are refused here, and nothing after this reads a path that came from anywhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from .records import ArenaError

COMPARISON, RESULTS, SAMPLES = "comparison.json", "results.jsonl", "images.jsonl"
CONTROL = "off_topic"
"""The group of control prompts, on which a model is not to change; which image of theirs is better is another question."""
FORMAT = 1
_HEAD = 65536
"""Bytes of a file that are hashed beside its length: enough to tell two renderings apart, quick for thousands of files."""


@dataclass(frozen=True)
class Item:
    """One prompt and seed, and the image file that each model (by its key) made of them."""

    index: int
    prompt: str
    seed: int | None
    files: Mapping[str, Path]

    def digest(self) -> str:
        """A fingerprint of prompt, seed and images: a database knows its items again by it."""
        found = hashlib.sha256(json.dumps([self.prompt, self.seed, sorted(self.files)]).encode())
        for key in sorted(self.files):
            with self.files[key].open("rb") as file:
                found.update(str(self.files[key].stat().st_size).encode() + file.read(_HEAD))
        return found.hexdigest()


@dataclass(frozen=True)
class Collection:
    """Models (key: label) and the items that all of them painted, by index; `left_out` prompts and seeds lack the image of one."""

    title: str
    models: Mapping[str, str]
    items: Mapping[int, Item]
    left_out: int


def read_sources(sources: Sequence[Path]) -> Collection:
    """The comparison folder given, or two and more folders of images.

    Raises: ArenaError that names the file and line: nothing to read, a record without image or prompt, prompts that differ, fewer than two models.
    """
    if len(sources) == 1:
        return _comparison(sources[0])
    if not sources:
        raise ArenaError("nothing to judge: give a comparison folder, or two or more folders of images from directalign sample")
    return _folders(sources)


def _comparison(folder: Path) -> Collection:
    if not (folder / COMPARISON).is_file():
        raise ArenaError(f"{folder}: no {COMPARISON} in it; give what directalign compare wrote, or two or more folders from directalign sample")
    told = _object((folder / COMPARISON).read_bytes(), str(folder / COMPARISON))
    if told.get("format") != FORMAT:
        raise ArenaError(f"{folder / COMPARISON}: format is {told.get('format')!r}, and {FORMAT} is read; write it again with this version")
    models = _models(told.get("models"), str(folder / COMPARISON))
    rows: dict[int, dict[str, tuple[str, int | None, Path]]] = {}
    for where, row in _rows(folder / RESULTS):
        if row.get("group") == CONTROL:
            continue
        key, index = str(row.get("model")), row.get("index")
        if key not in models or not _is_whole(index):
            raise ArenaError(f"{where}: model {key!r:.40} or index {index!r:.40} is none of {COMPARISON}; remove the line or compare again")
        rows.setdefault(index, {})[key] = _entry(folder, row, where)
    return _collection(folder.name, models, rows, str(folder / RESULTS))


def _models(told: Any, where: str) -> dict[str, str]:
    """Label by key."""
    if not isinstance(told, list) or not all(isinstance(model, dict) and isinstance(model.get("key"), str) for model in told):
        raise ArenaError(f"{where}: models is {told!r:.60}, and a list of objects with a key is needed; compare again")
    return {model["key"]: str(model.get("label") or model["key"]) for model in told}


def _folders(folders: Sequence[Path]) -> Collection:
    """Images are paired by prompt and seed; their order is that of the first folder."""
    names = [folder.name if len({other.name for other in folders}) == len(folders) else str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise ArenaError(f"{folders[0]}: the same folder is given twice; give each once")
    rows: dict[tuple[str, int | None, int], dict[str, tuple[str, int | None, Path]]] = {}
    for name, folder in zip(names, folders, strict=True):
        seen: dict[tuple[str, int | None], int] = {}
        for where, row in _rows(folder / SAMPLES):
            prompt, seed, file = _entry(folder, row, where)
            again = seen[prompt, seed] = seen.get((prompt, seed), -1) + 1
            rows.setdefault((prompt, seed, again), {})[name] = (prompt, seed, file)
    return _collection(" / ".join(names), {name: name for name in names}, dict(enumerate(rows.values())), str(folders[0] / SAMPLES))


def _collection(title: str, models: Mapping[str, str], rows: Mapping[int, Mapping[str, tuple[str, int | None, Path]]], where: str) -> Collection:
    """Items that every model has; one that a model lacks is left out."""
    if len(models) < 2:
        raise ArenaError(f"{where}: {len(models)} models, and two are the least that can be compared")
    items = {}
    for index, entries in sorted(rows.items()):
        prompts = {prompt for prompt, _, _ in entries.values()}
        if len(prompts) > 1:
            raise ArenaError(f"{where}: index {index} has {len(prompts)} prompts ({', '.join(sorted(prompts))!r:.120}); compare images of one prompt")
        if len(entries) == len(models):
            prompt, seed, _ = next(iter(entries.values()))
            items[index] = Item(index, prompt, seed, {key: entries[key][2] for key in models})
    if not items:
        raise ArenaError(f"{where}: no prompt and seed of which all of {', '.join(models)} have an image; sample them with equal prompts and seeds")
    return Collection(title, models, items, len(rows) - len(items))


def _entry(folder: Path, row: Mapping[str, Any], where: str) -> tuple[str, int | None, Path]:
    prompt, seed = row.get("prompt"), row.get("seed")
    if not isinstance(prompt, str) or not (seed is None or _is_whole(seed)):
        raise ArenaError(f"{where}: prompt {prompt!r:.40} and seed {seed!r:.40}; a text and a whole number below 2**63 are needed")
    return prompt, seed, _inside(folder, row.get("file"), where)


def _is_whole(value: Any) -> TypeGuard[int]:
    """A whole number as a database holds it; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _inside(folder: Path, name: Any, where: str) -> Path:
    """The real file of that name in the folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ArenaError(f"{where}: file is {name!r:.60}; the name of an image is needed")
    expected = folder.resolve() / name
    if ".." in Path(name).parts or expected.resolve() != expected or not expected.is_relative_to(folder.resolve()):
        raise ArenaError(f"{where}: {name!r:.120} leads out of {folder} or is a symbolic link; name a real file inside it")
    if not expected.is_file():
        raise ArenaError(f"{where}: {name!r:.120} is not there; copy the folder again")
    return expected


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line; a last line cut short is a record that is being written, and is left out."""
    if not file.is_file():
        raise ArenaError(f"{file.parent}: no {file.name} in it; give what directalign compare or directalign sample wrote")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip() and line.endswith((b"\n", b"}")):
                yield f"{file}:{number}", _object(line, f"{file}:{number}")


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # half a character, as an escape may write it, is text nowhere else
    except (ValueError, RecursionError) as error:
        raise ArenaError(f"{where}: not JSON ({error}); mend or remove it") from None
    if not isinstance(found, dict):
        raise ArenaError(f"{where}: holds {type(found).__name__}, and an object is needed; mend or remove it")
    return found
