"""Adherence as one of the looks of a comparison: numbers like any other's, and beside them what was said of every fact.

OUT/scores/adherence_facts.jsonl   {"model", "index", "facts": [{"fact": "exactly two clocks", "right": false, "saw": "3 found"}, ...]}
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from .. import config
from ..io.jsonl import Ledger, Say
from ..metrics import SHARE, Metric
from .adherence import (
    ADHERENCE,
    Adherence,
    adherence_of,
    adherence_settings,
    check_adherence,
    check_rows,
    numbers,
)
from .candidates import Subject
from .eval_prompts import PromptRow
from .eval_samples import Item
from .scores import Numbers, Planned, Shown

OPTION = "--adherence"
FACTS = "adherence_facts.jsonl"


def adherence_asked(
    option: str | None, subjects: Sequence[Subject]
) -> config.AdherenceConfig | None:
    """The judge that the command names, else that of the first recipe with one; None where nothing is asked. Raises as `adherence_settings`."""
    if option is not None:
        return adherence_settings(option, OPTION)
    return next(
        (
            each.recipe.evaluate.adherence
            for each in subjects
            if each.recipe is not None and each.recipe.evaluate.adherence is not None
        ),
        None,
    )


def planned_adherence(
    settings: config.AdherenceConfig, items: Sequence[Item], out: Path, say: Say
) -> Planned:
    """The look, checked and not loaded. Raises DirectAlignError for a judge that will not load, and for prompts that it cannot judge."""
    rows = [_row(item) for item in items if not item.control_prompts]
    check_adherence(settings, online=True)
    check_rows(settings, rows)
    told = settings.model_dump(mode="json")
    return Planned(
        ADHERENCE,
        about_adherence(rows, settings),
        partial(_load, settings, out, say),
        {ADHERENCE: told},
    )


def about_adherence(
    rows: Sequence[PromptRow], settings: config.AdherenceConfig
) -> dict[str, Metric]:
    """What each number says: all prompts together, and those of each tag."""
    by = (
        f"a vision-language model ({settings.path})"
        if isinstance(settings, config.QwenVLConfig)
        else f"a detector ({settings.path}) and GenEval's rules"
    )
    tags = dict.fromkeys(row.facts["tag"] for row in rows if row.facts)
    text = f"Share of images in which all that the prompt asks for is right by {by}, 0 to 1."
    found = [Metric(ADHERENCE, "As the prompt says", "adherence", True, text, SHARE)]
    for tag in tags:
        named, text = tag.replace("_", " "), f"The same, of prompts of {tag} alone."
        found.append(
            Metric(f"{ADHERENCE}_{tag}", f"As the prompt says: {named}", "adherence", True, text)
        )
    return {each.name: each for each in found}


def _load(settings: config.AdherenceConfig, out: Path, say: Say) -> partial[Numbers]:
    judge = adherence_of(settings, "cuda" if torch.cuda.is_available() else "cpu")
    return partial(looked_at, judge, Ledger(out / "scores" / FACTS, say))


def looked_at(judge: Adherence, facts: Ledger, shown: Shown) -> Numbers:
    """The numbers of images, whose facts go into their file; control images are not judged."""
    if shown.control_prompts:
        return {}
    rows, found = [_row(item) for item in shown.items], {}
    for key, images in shown.images.items():
        judged = judge.judged(images, rows)
        facts.append(
            {"model": key, "index": item.index, "facts": each.record()}
            for item, each in zip(shown.items, judged, strict=True)
        )
        found[key] = numbers(judged)
    return found


def _row(item: Item) -> PromptRow:
    return PromptRow(item.prompt, item.group, item.facts)
