"""Folders of images as models of a comparison: what `directalign sample` leaves, or images.jsonl with file, prompt and seed from anywhere."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from .. import config
from ..data.text_files import checked_prompt, json_rows
from ..models import model_class
from ..models.lora import LORA_FILE
from ..types import DirectAlignError
from .eval_samples import Item
from .generate import RECORD, run_of

Kind = Literal["base", "run", "model", "images"]
BASE, BASE_LABEL = "base", "Base model"
OF_A_MODEL = ("architecture", "path", "components", "revision", "variant", "dtype", "quantization")
"""Settings of `config.Model` that say which weights a run begins with."""


@dataclass(frozen=True)
class Subject:
    """One model of a comparison. `run` is its recipe with the rollout it is sampled by, None for images; `trained` the folder of its weights."""

    key: str
    label: str
    kind: Kind
    source: str
    run: config.RunConfig | None = None
    trained: Path | None = None
    base: str | None = None
    """Key of the model that its images are held against."""

    @property
    def recipe(self) -> config.RunConfig | None:
        """The recipe that it was trained by, None where nothing was."""
        return self.run if self.kind == "run" else None


def open_subjects(
    sources: Sequence[str], with_base: bool, rollout: Mapping[str, Any]
) -> list[Subject]:
    """The models that `sources` name, bases first, each with a key and a label of its own; `rollout` is laid over everyone's settings.

    Raises: DirectAlignError for no source at all, a source that is none of the three kinds, a run without weights, and labels alike.
    """
    if not sources:
        raise DirectAlignError(
            "nothing to compare: give runs, models or folders of images, as in directalign compare runs/a runs/b --base"
        )
    subjects = _labelled(
        [_open(*_parted(source)) for source in sources],
        [_parted(source)[0] is not None for source in sources],
    )
    subjects = [
        each if each.run is None else replace(each, run=_laid_over(each.run, rollout))
        for each in subjects
    ]
    return _with_bases(subjects, with_base)


def _parted(text: str) -> tuple[str | None, str]:
    """(label, source) of LABEL=SOURCE; a path that holds an = is a path."""
    label, equals, source = text.partition("=")
    if not equals or "/" in label or Path(text).exists():
        return None, text
    if not label.strip() or not source:
        raise DirectAlignError(f"{text}: write it as LABEL=SOURCE, for example SRPO=runs/srpo")
    return label.strip(), source


def _open(label: str | None, source: str) -> Subject:
    folder = Path(source)
    if (folder / RECORD).is_file() and not (folder / "run.yaml").is_file():
        return Subject("", label or folder.resolve().name, "images", source)
    if (
        folder.is_dir()
        and not (folder / "run.yaml").is_file()
        and not (folder / "model_index.json").is_file()
    ):
        raise DirectAlignError(
            f"{source}: neither a run (run.yaml), nor a pipeline (model_index.json), nor images ({RECORD}); give one of the three"
        )
    run, trained = run_of(folder)
    if trained is None:
        return Subject("", label or folder.name, "model", source, run)
    weights = trained / (
        LORA_FILE if run.model.tune == "lora" else model_class(run.model.architecture).part
    )
    if not weights.exists():
        raise DirectAlignError(
            f"{weights}: no such file, the run is not finished; go on with directalign train ... --resume --out {source}"
        )
    return Subject("", label or run.name, "run", source, run, trained)


def _labelled(subjects: list[Subject], given: list[bool]) -> list[Subject]:
    """Derived labels told apart by their folders, and a key for each: its label in letters that a file name may have."""
    labels = [each.label for each in subjects]
    told = [
        f"{each.label} ({Path(each.source).resolve().name})"
        if labels.count(each.label) > 1 and not own
        else each.label
        for each, own in zip(subjects, given, strict=True)
    ]
    twice = next((label for label in told if told.count(label) > 1), None)
    if twice is not None:
        first, second, *_ = [
            each.source for each, label in zip(subjects, told, strict=True) if label == twice
        ]
        raise DirectAlignError(
            f"{first} and {second} are both called {twice!r}; give each a label of its own: LABEL=SOURCE"
        )
    return [
        replace(each, label=label, key=key)
        for each, label, key in zip(subjects, told, _keys(told), strict=True)
    ]


def _keys(labels: Sequence[str]) -> list[str]:
    """File names from labels, never `base`, each once."""
    found: list[str] = []
    for label in labels:
        plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
        stem = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:40] or "model"
        key, number = stem, 2
        while key in (*found, BASE):
            key, number = f"{stem}_{number}", number + 1
        found.append(key)
    return found


def _laid_over(run: config.RunConfig, rollout: Mapping[str, Any]) -> config.RunConfig:
    return run.model_copy(update={"rollout": run.rollout.model_copy(update=dict(rollout))})


def _with_bases(subjects: list[Subject], with_base: bool) -> list[Subject]:
    """The base of every run before all others, once for each model and way of sampling; whoever is not a run is held against the only base."""
    runs = [each for each in subjects if each.kind == "run"]
    if not with_base:
        return subjects
    if not runs:
        raise DirectAlignError(
            "--base: adds the model that a run began with, and no run is compared; leave it out"
        )
    kinds = list(dict.fromkeys(map(_beginning, runs)))
    firsts = [next(run for run in runs if _beginning(run) == kind) for kind in kinds]
    single = len(firsts) == 1
    keys = {kind: BASE if place == 0 else f"{BASE}_{place + 1}" for place, kind in enumerate(kinds)}
    bases = [
        Subject(
            keys[kind],
            BASE_LABEL if single else f"{BASE_LABEL} of {run.label}",
            "base",
            str(run.run and run.run.model.path),
            run.run,
        )
        for kind, run in zip(kinds, firsts, strict=True)
    ]
    return [
        *bases,
        *(
            replace(
                each,
                base=keys[_beginning(each)] if each.kind == "run" else BASE if single else None,
            )
            for each in subjects
        ),
    ]


def _beginning(subject: Subject) -> str:
    """The model that a run began with, and how it is sampled."""
    assert subject.run is not None
    model = {name: getattr(subject.run.model, name) for name in OF_A_MODEL}
    return f"{model} {subject.run.rollout.model_dump(exclude={'sizes'})}"


Asked = tuple[str, int]
"""Prompt and seed."""


def items_of_images(
    subjects: Sequence[Subject], num_samples: int | None
) -> tuple[list[Item], dict[str, list[Path]]]:
    """The items that folders of images have, in the order of the first folder, and every folder's files for them.

    Raises: DirectAlignError where a folder lacks an image of another one, and where images are of different sizes; nothing is decoded.
    """
    folders = {subject.key: _read(Path(subject.source)) for subject in subjects}
    first, *others = subjects
    asked = list(folders[first.key])[:num_samples]
    for other in others:
        lacking = [each for each in asked if each not in folders[other.key]]
        if num_samples is None:
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
        f"the first of {prompt!r:.60}, seed {seed}; sample both alike, or take the first ones with --num-samples"
    )


def _read(folder: Path) -> dict[Asked, Path]:
    """The file of each prompt and seed."""
    found: dict[Asked, Path] = {}
    for line, row in json_rows(folder / RECORD, "record of images"):
        where = f"{folder / RECORD}:{line}"
        asked, file = _row(row, where), folder / str(row["file"])
        if asked in found:
            raise DirectAlignError(
                f"{where}: {asked[0]!r:.60} with seed {asked[1]} comes twice; keep one of the two"
            )
        if not file.resolve().is_relative_to(folder.resolve()):
            raise DirectAlignError(
                f"{where}: file {row['file']!r:.80} lies outside {folder}; name a file in it"
            )
        if not file.is_file():
            raise DirectAlignError(f"{where}: {file} is missing; restore it, or take its line out")
        found[asked] = file
    if not found:
        raise DirectAlignError(
            f"{folder / RECORD}: names no image; give a folder that directalign sample left"
        )
    return found


def _row(row: Mapping[str, Any], where: str) -> Asked:
    kinds = {"file": str, "prompt": str, "seed": int}
    wrong = next(
        (
            name
            for name, kind in kinds.items()
            if not isinstance(row.get(name), kind) or isinstance(row.get(name), bool)
        ),
        None,
    )
    if wrong is not None:
        raise DirectAlignError(
            f'{where}: {wrong} is {row.get(wrong)!r:.40}; write {{"file": "a.png", "prompt": "a red star", "seed": 0}}'
        )
    return checked_prompt(row["prompt"], where), row["seed"]


def _check_sizes(files: Sequence[Path]) -> None:
    """One size for all, read from the heads of the files."""
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.setdefault(image.size, file)
        except OSError as error:
            raise DirectAlignError(
                f"{file}: not readable as an image; restore it, or take its line out of {RECORD}"
            ) from error
    if len(sizes) > 1:
        (first, one), (second, other), *_ = sizes.items()
        raise DirectAlignError(
            f"{one} has {first[0]}x{first[1]} pixels and {other} {second[0]}x{second[1]}: bring all images to one size"
        )
