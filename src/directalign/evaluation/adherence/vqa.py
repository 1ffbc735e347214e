"""Facts as yes-or-no questions to a vision-language model, which also takes free prompts: the prompt is then the one fact.

A fact is true where P(yes) is above one half. Easier to have than a detector, and it reads any prompt; but it answers what it is asked from one
look, counts badly, and inclines to yes: two models are compared by it more safely than either is measured.
"""

from __future__ import annotations

import torch

from ... import config
from ...rewards import qwen_vl
from ...types import DirectAlignError
from ..eval_prompts import PromptRow
from .detector import Image
from .geneval import Judged, Verdict, facts_of

DECISION = 0.5


class Asking:
    """Judges by the answers of a frozen `vlm` reward."""

    def __init__(self, reward: qwen_vl.VlmReward) -> None:
        self.reward = reward

    @torch.no_grad()
    def judge(self, image: Image, row: PromptRow) -> Judged:
        """A verdict on each fact of the row, or on its prompt; the image in [0, 1] is looked at once."""
        asked = [fact.words for fact in facts_of(row.facts)] if row.facts else [row.prompt]
        features = self.reward.encode(image[None])
        sure = [float(self.reward.score(features, [words])) for words in asked]
        verdicts = [
            Verdict(words, p > DECISION, f"P(yes) {p:.3f}")
            for words, p in zip(asked, sure, strict=True)
        ]
        return Judged(row.facts["tag"] if row.facts else None, tuple(verdicts))


def load_asking(settings: config.QwenVLConfig, device: torch.device | str, key: str) -> Asking:
    """Of a section `adherence: {name: vlm, ...}`."""
    require_probability(settings, key)
    return Asking(qwen_vl.VlmReward.from_config(settings, device, key))


def require_probability(settings: config.QwenVLConfig, key: str) -> None:
    """Raises DirectAlignError for answers that one half does not divide."""
    if settings.answer != "probability" or settings.scale != 1:
        raise DirectAlignError(
            f"{key}: answer: {settings.answer}, scale: {settings.scale:g}; a fact is decided by P(yes): leave both out"
        )
