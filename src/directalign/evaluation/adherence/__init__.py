"""Whether images show what their prompts say, fact by fact: by a detector and GenEval's rules, or by questions to a vision-language model.

    adherence_of(settings, device)(images, rows) -> {"adherence": (b,), "adherence_<tag>": (b,), ...}

`check_adherence` and `check_rows` know beforehand what would go wrong; `adherence_settings` reads what a command is told in place of a recipe.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ... import config
from ...types import Images, PerSample
from ..eval_prompts import PromptRow
from .checking import KEY, check_adherence, check_facts, check_rows
from .detector import Detecting, load_detecting
from .geneval import ADHERENCE, Judged, Verdict, numbers
from .settings import adherence_settings
from .vqa import Asking, load_asking

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


class Adherence:
    """A frozen judge on its own device, which looks at one image at a time."""

    def __init__(
        self,
        by: Detecting | Asking,
        settings: config.AdherenceConfig,
        device: torch.device | str,
        key: str,
    ) -> None:
        self.by, self.settings, self.device, self.key = by, settings, device, key

    def __call__(self, images: Images, rows: Sequence[PromptRow]) -> dict[str, PerSample]:
        """The numbers of images (b, 3, h, w) in [0, 1], one row each, on the CPU; NaN where an image has no such number (see `numbers`)."""
        return numbers(self.judged(images, rows))

    def judged(self, images: Images, rows: Sequence[PromptRow]) -> list[Judged]:
        """Every image's verdicts. Raises DirectAlignError as `check_rows`."""
        if isinstance(self.by, Detecting) and isinstance(self.settings, config.DetectorConfig):
            check_facts(self.settings, rows, self.by.detector.classes, self.key)
        return [
            self.by.judge(image.to(self.device), row)
            for image, row in zip(images, rows, strict=True)
        ]


def adherence_of(
    settings: config.AdherenceConfig, device: torch.device | str = "cpu", key: str = KEY
) -> Adherence:
    """The judge of a section, loaded; `key` is where it stands, for errors."""
    by = (
        load_asking(settings, device, key)
        if isinstance(settings, config.QwenVLConfig)
        else load_detecting(settings, device, key)
    )
    return Adherence(by, settings, device, key)
