"""What is wrong with a section `adherence`, and with prompts that it shall judge: known before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ... import config
from ...rewards import clip, qwen_vl
from ...types import DirectAlignError
from ..eval_prompts import PromptRow
from .detector import COLORS, check_detector, known_classes, own_name
from .vqa import require_probability

KEY = "evaluate.adherence"


def check_adherence(settings: config.AdherenceConfig, key: str = KEY, online: bool = False) -> None:
    """What loading would refuse, as far as it can be known without weights; of models on the hub only when `online`."""
    if isinstance(settings, config.QwenVLConfig):
        require_probability(settings, key)
        qwen_vl.VlmReward.check(settings, key, online)
        return
    check_detector(settings, key, online)
    if settings.colors is not None:
        clip.ClipReward.check(settings.colors, f"{key}.colors", online)


def check_rows(settings: config.AdherenceConfig, rows: Sequence[PromptRow], key: str = KEY) -> None:
    """Whether these prompts can be judged: a VLM takes all, a detector those with facts about what it knows.

    Raises: DirectAlignError for a prompt without facts, a thing that the detector does not know, a colour that nothing reads or names.
    """
    if isinstance(settings, config.DetectorConfig):
        check_facts(settings, rows, known_classes(settings, key), key)


def check_facts(
    settings: config.DetectorConfig,
    rows: Sequence[PromptRow],
    classes: Mapping[int, str] | None,
    key: str,
) -> None:
    """As `check_rows`, for a detector of these classes (None: any)."""
    free = next((row.prompt for row in rows if not row.facts), None)
    if free is not None:
        raise DirectAlignError(
            f"{key}: a detector judges facts, and {free!r:.60} comes without: give a GenEval file of prompts, or set name: vlm"
        )
    colors = [entry["color"] for entry in _objects(rows) if "color" in entry]
    if colors and settings.colors is None:
        raise DirectAlignError(
            f"{key}.colors: missing, and prompts ask for what is {colors[0]}; give a CLIP, e.g. path: openai/clip-vit-large-patch14"
        )
    unnamed = next((color for color in colors if color not in COLORS), None)
    if unnamed is not None:
        raise DirectAlignError(
            f"{key}: prompts ask for {unnamed}, and colours are told apart among {', '.join(COLORS)}; leave those prompts out, or set name: vlm"
        )
    things = dict.fromkeys(entry["class"] for entry in _objects(rows))
    unknown = [
        thing for thing in things if classes is not None and own_name(thing) not in classes.values()
    ]
    if unknown:
        raise DirectAlignError(
            f"{key}.path: {settings.path} knows no {unknown[0]} ({len(unknown)} of {len(things)} things are unknown to it); take an OWLv2"
        )


def _objects(rows: Sequence[PromptRow]) -> Iterator[Mapping[str, Any]]:
    for row in rows:
        yield from (*row.facts["include"], *row.facts["exclude"])
