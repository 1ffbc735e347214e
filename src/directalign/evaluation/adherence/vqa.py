"""Facts, or a prompt without facts, as yes-or-no questions to a vision-language model.

A fact is true where P(yes) > 0.5. Unlike a detector this works for any prompt, but a VLM counts
badly and tends to say yes: comparisons of two models are more reliable than absolute values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ... import config
from ...rewards import qwen_vl
from ...types import DirectAlignError
from ..eval_prompts import PromptRow
from .detector import Image
from .geneval import Judged, Verdict, facts_of

DECISION = 0.5


@dataclass(frozen=True)
class VlmJudge:
    """Judges by the answers of a frozen `vlm` reward."""

    reward: qwen_vl.VlmReward

    @classmethod
    def load(cls, settings: config.QwenVLConfig, device: torch.device | str, key: str) -> VlmJudge:
        """Of a section `adherence: {name: vlm, ...}`."""
        require_probability(settings, key)
        return cls(qwen_vl.VlmReward.from_config(settings, device, key))

    @torch.no_grad()
    def judge(self, image: Image, row: PromptRow) -> Judged:
        """A verdict on each fact of the row, or on its prompt; the image is encoded once."""
        texts = [fact.text for fact in facts_of(row.facts)] if row.facts else [row.prompt]
        features = self.reward.encode(image[None])
        verdicts = []
        for text in texts:
            p = float(self.reward.score(features, [text]))
            verdicts.append(Verdict(text, p > DECISION, f"P(yes) {p:.3f}"))
        return Judged(row.facts["tag"] if row.facts else None, tuple(verdicts))


def require_probability(settings: config.QwenVLConfig, key: str) -> None:
    """Raises DirectAlignError for answers that are not a probability."""
    if settings.answer != "probability" or settings.scale != 1:
        raise DirectAlignError(
            f"{key}: answer: {settings.answer}, scale: {settings.scale:g}; "
            "a fact is decided by P(yes): leave both out"
        )
