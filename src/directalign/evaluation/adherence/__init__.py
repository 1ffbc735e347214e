"""Prompt adherence fact by fact: by a detector and GenEval's rules, or a vision-language model.

    adherence_of(settings, device)(images, rows) -> {"adherence": (b,), "adherence_<tag>": (b,)}

`check_adherence` and `check_rows` find errors before loading; `adherence_settings` reads a
command's option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ... import config
from ...types import Images, PerSample
from ..eval_prompts import PromptRow
from .detector import DetectorJudge
from .geneval import ADHERENCE, Judged, Verdict, numbers
from .settings import KEY, adherence_settings, check_adherence, check_facts, check_rows
from .vqa import VlmJudge

__all__ = [
    "ADHERENCE",
    "Adherence",
    "Judged",
    "Verdict",
    "adherence_of",
    "adherence_settings",
    "check_adherence",
    "check_rows",
    "numbers",
]


@dataclass(frozen=True)
class Adherence:
    """A frozen judge on its device, which judges one image at a time."""

    by: DetectorJudge | VlmJudge
    settings: config.AdherenceConfig
    device: torch.device | str
    key: str

    def __call__(self, images: Images, rows: Sequence[PromptRow]) -> dict[str, PerSample]:
        """`numbers` of images (b, 3, h, w) in [0, 1], one row each, on the CPU."""
        return numbers(self.judged(images, rows))

    def judged(self, images: Images, rows: Sequence[PromptRow]) -> list[Judged]:
        """The verdicts on every image. Raises DirectAlignError as `check_rows`."""
        if isinstance(self.by, DetectorJudge) and isinstance(self.settings, config.DetectorConfig):
            check_facts(self.settings, rows, self.by.detector.classes, self.key)
        pairs = zip(images, rows, strict=True)
        return [self.by.judge(image.to(self.device), row) for image, row in pairs]


def adherence_of(
    settings: config.AdherenceConfig, device: torch.device | str = "cpu", key: str = KEY
) -> Adherence:
    """Load the judge of a section; `key` names it in errors."""
    if isinstance(settings, config.QwenVLConfig):
        return Adherence(VlmJudge.load(settings, device, key), settings, device, key)
    return Adherence(DetectorJudge.load(settings, device, key), settings, device, key)
