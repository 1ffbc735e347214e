"""Every look at every image, one loaded after the other, into a ledger of its own; then one line per image with all its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..io.jsonl import Ledger, Place, Row, Say
from .drawing import file_of, load_images
from .items import Item, batches
from .looks import Look, Planned, Shown
from .subjects import Subject

RESULTS, SCORES = "results.jsonl", "scores"


def look_at_all(planned: Sequence[Planned], subjects: Sequence[Subject], items: Sequence[Item], out: Path, batch_size: int, say: Say) -> list[Row]:
    """The lines of results.jsonl, model by model and in the order of the items: what is missing is looked at and appended."""
    ledgers = [_looked(each, subjects, items, out, batch_size, say) for each in planned]
    results = Ledger(out / RESULTS, say)
    for subject in subjects:
        results.append(_line(subject, item, ledgers) for item in items)
    return [results.rows[subject.key, item.index] for subject in subjects for item in items]


def _looked(planned: Planned, subjects: Sequence[Subject], items: Sequence[Item], out: Path, batch_size: int, say: Say) -> Ledger:
    """Its file complete; it is loaded only if something is missing, and let go of at the end."""
    (out / SCORES).mkdir(exist_ok=True)
    ledger = Ledger(out / SCORES / f"{planned.name}.jsonl", say)
    look: Look | None = None
    for batch in batches(items, batch_size):
        if not ledger.missing(_places(subjects, batch)):
            continue
        if look is None:
            say(f"{planned.name}: looking at {len(ledger.missing(_places(subjects, items)))} images")
            look = planned.load()
        ledger.append(_rows(look, subjects, batch, out))
    return ledger


def _rows(look: Look, subjects: Sequence[Subject], batch: Sequence[Item], out: Path) -> Iterator[Row]:
    images = {subject.key: load_images(out, subject.key, batch) for subject in subjects}
    found = look(Shown(batch, images, {subject.key: subject.base for subject in subjects}))
    for subject in subjects:
        each = {name: values.tolist() for name, values in found.get(subject.key, {}).items()}
        for place, item in enumerate(batch):
            numbers = {name: values[place] for name, values in each.items() if math.isfinite(values[place])}
            yield {"model": subject.key, "index": item.index, "numbers": numbers}


def _line(subject: Subject, item: Item, ledgers: Sequence[Ledger]) -> Row:
    numbers = {name: value for ledger in ledgers for name, value in ledger.rows[subject.key, item.index]["numbers"].items()}
    file = file_of(subject.key, item.index)
    return {
        "model": subject.key,
        "index": item.index,
        "prompt": item.prompt,
        "seed": item.seed,
        "file": file,
        "group": item.group,
        "numbers": numbers,
    }


def _places(subjects: Sequence[Subject], items: Sequence[Item]) -> list[Place]:
    return [(subject.key, item.index) for subject in subjects for item in items]
