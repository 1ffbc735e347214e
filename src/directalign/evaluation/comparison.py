"""`comparison.json`: what is compared, on what, and how to do it again; and the claim on the folder, so that no two comparisons mix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import config
from ..io.jsonl import told_where_full, write_whole
from ..metrics import SCORE, SGP
from ..types import DirectAlignError
from .items import Item
from .looks import Planned
from .pairs import FIRST_SEED
from .seen_rewards import SeenReward
from .subjects import Subject

FORMAT = 1
COMPARISON = "comparison.json"
OWN = ("images", "scores", "results.jsonl", "summary.json")
NO_TRAINING = ("model", "rollout")
"""The sections of a recipe that matter for a model that was not trained."""


def described(
    subjects: Sequence[Subject], items: Sequence[Item], source: str, rewards: Sequence[SeenReward], words: config.ControlPhrases, command: str
) -> dict[str, Any]:
    """What a reader of the folder must know, without what it ran on."""
    own = [item for item in items if not item.off_topic]
    prompts = {"source": source, "count": len({item.prompt for item in own}), "images": len(own), "off_topic": len(items) - len(own)}
    return {
        "format": FORMAT,
        "models": [_model(subject, rewards) for subject in subjects],
        "prompts": prompts,
        "seed_of_pairs": FIRST_SEED,
        "words": {"positive": words.positive, "negative": words.negative},
        "differing": differing(subjects),
        "command": command,
    }


def asked(subjects: Sequence[Subject], items: Sequence[Item], looks: Sequence[Planned], words: config.ControlPhrases, off_topic: str | None) -> dict[str, Any]:
    """What must be the same for a comparison to be gone on with: models and their weights, how they are sampled, prompts and seeds, looks."""
    pairs = json.dumps([(item.prompt, item.seed, item.group) for item in items], ensure_ascii=False)
    models = {subject.key: {"source": subject.source, "kind": subject.kind, **_weights(subject), **_sections(subject)} for subject in subjects}
    return {
        "models": models,
        "prompts and seeds": hashlib.sha256(pairs.encode()).hexdigest()[:16],
        "looks": {look.name: look.settings for look in looks},
        "words": words.model_dump(mode="json"),
        "off_topic": off_topic,
    }


def claim(out: Path, told: Mapping[str, Any], now: Mapping[str, Any], where: Mapping[str, Any]) -> None:
    """Write comparison.json, or go on with one of the same question; `where` (commit, machine, versions) is of the process that began it.

    Raises: DirectAlignError for an `out` that is a file, holds something else, or holds another comparison: the first difference is named.
    """
    if out.exists() and not out.is_dir():
        raise DirectAlignError(f"--out {out} is a file; name a folder")
    file, whole = out / COMPARISON, json.loads(json.dumps(now))
    if file.is_file():
        _check_same(out, _read(file).get("asked", {}), whole)
        return
    taken = [name for name in OWN if (out / name).exists()]
    if taken:
        raise DirectAlignError(f"--out {out} holds {', '.join(taken)} and no {COMPARISON}; name another folder")
    try:
        with told_where_full(out):
            out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise DirectAlignError(f"--out {out} cannot be made: {error.strerror}; name a folder that you may write to") from error
    write_whole(file, json.dumps({**told, **where, "asked": whole}, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """No other process writes to the folder meanwhile; the hold ends with this process, however that ends. Raises: DirectAlignError if there is one."""
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DirectAlignError(f"--out {out}: another process is at work on this comparison; wait for it, or end it first") from error
    try:
        yield
    finally:
        lock.release()


def differing(subjects: Sequence[Subject]) -> list[str]:
    """The settings of sampling that are not the same for all models, by their dotted names."""
    settings = [flat({"rollout": subject.run.rollout.model_dump(mode="json", exclude={"sizes"})}) for subject in subjects if subject.run is not None]
    return [name for name in (settings[0] if settings else {}) if any(each.get(name) != settings[0][name] for each in settings)]


def flat(section: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; lists stay values."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        dotted = f"{above}{name}"
        found |= flat(value, f"{dotted}.") if isinstance(value, Mapping) and value else {dotted: value}
    return found


def _model(subject: Subject, rewards: Sequence[SeenReward]) -> dict[str, Any]:
    own = [each.label for each in rewards if subject.key in each.trained]
    trained_on = [f"{prefix}{label}" for label in own for prefix in (SCORE, SGP)]
    settings = flat(_sections(subject)) if subject.run else None
    if subject.recipe is not None:
        settings = flat(subject.recipe.model_dump(mode="json"))
    told = {"key": subject.key, "label": subject.label, "source": subject.source, "kind": subject.kind, "trained_on": trained_on, "base": subject.base}
    return {**told, "settings": settings}


def _sections(subject: Subject) -> dict[str, Any]:
    return {} if subject.run is None else subject.run.model_dump(mode="json", include=set(NO_TRAINING))


def _weights(subject: Subject) -> dict[str, Any]:
    """Size and time of the trained weights' files, or of images: a run that was trained again is another model."""
    folder = subject.trained if subject.kind == "run" else Path(subject.source) if subject.kind == "images" else None
    if folder is None:
        return {}
    files = sorted(file for file in folder.glob("*") if subject.kind == "images") or list(_safetensors(folder))
    return {"files": {str(file.relative_to(folder)): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}}


def _safetensors(folder: Path) -> Iterator[Path]:
    for part in (folder, folder / "transformer", folder / "unet"):
        yield from sorted(part.glob("*.safetensors"))


def _check_same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = _identity(before), _identity(now)
    changed = next((name for name in (*new, *old) if old.get(name) != new.get(name)), None)
    if changed is not None:
        was, now_ = (f"{each[changed]!r:.80}" if changed in each else "nothing" for each in (old, new))
        raise DirectAlignError(f"--out {out} holds another comparison: {changed} was {was} and is now {now_}; name another folder, or remove that one")


def _identity(question: Mapping[str, Any]) -> dict[str, Any]:
    """`question` without the folders of models whose files are known: a run that was moved, or named by another path, is the same."""
    found = flat(question)
    known = {name.split(".files.")[0] for name in found if ".files." in name}
    return {name: value for name, value in found.items() if name.removesuffix(".source") not in known}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DirectAlignError(f"{file}: not JSON ({error}); name another --out") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DirectAlignError(f"{file}: not a comparison of this version (format {FORMAT}); name another --out")
    return content
