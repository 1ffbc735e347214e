"""A detector, and a CLIP for colours, put together to judge images by GenEval's rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ... import config
from ...rewards import clip
from ..prompt_sets import PromptRow
from .colors import ColorReader
from .detector import Detector, Image
from .detector_files import limits_of, load_detector
from .found import Found
from .rules import Limits, judge
from .verdicts import Judged


class Detecting:
    """Judges by what a frozen detector finds; `colors` is None where no prompt asks for any."""

    def __init__(self, detector: Detector, limits: Limits, colors: ColorReader | None) -> None:
        self.detector, self.limits, self.colors = detector, limits, colors

    def judge(self, image: Image, row: PromptRow) -> Judged:
        """A verdict on each fact of the row, which must have some; the image in [0, 1] is looked at once."""
        things = [entry["class"] for entry in (*row.facts["include"], *row.facts["exclude"])]
        found = self.detector.find(image, things, self.limits.of(row.facts["tag"]))

        def read_colors(each: Sequence[Found], thing: str) -> list[str]:
            assert self.colors is not None, "refused by checking.check_facts"
            return self.colors.read(image, each, thing)

        return judge(row.facts, found, self.limits, read_colors)


def load_detecting(settings: config.Detector, device: torch.device | str, key: str) -> Detecting:
    """Of a section `adherence: {name: detector, ...}`."""
    detector = load_detector(settings, device, key)
    colors = None if settings.colors is None else ColorReader(clip.ClipReward.from_config(settings.colors, device, f"{key}.colors"))
    return Detecting(detector, limits_of(settings, detector.model.config.model_type), colors)
