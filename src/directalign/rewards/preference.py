"""What is asked of a reward, and what is maximised: one score, one score above another, or that with the bare score held.

Every method asks through here, so that methods differ in how the gradient reaches the network and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import Preferring
from ..core import preference
from ..interfaces import ALONE, Reward, Together
from ..types import Batch, DirectAlignError, Images, PerSample, Scores


@dataclass(frozen=True)
class Asked:
    """What is maximised, per image and with its gradient, and the means of what went into it."""

    reward: PerSample
    metrics: Mapping[str, float]


class Preference:
    """A reward with the questions of a recipe (`config.Preferring`); ranks that train `together` have one reference for the anchor.

    Raises DirectAlignError for a reward that ignores the prompt where two phrasings are to be compared.
    """

    def __init__(self, reward: Reward, settings: Preferring, together: Together = ALONE) -> None:
        require_text_side(reward, settings.form)
        self.reward_model, self.settings, self.together = reward, settings, together
        self.reference = Reference(settings.anchor.reference_updates)

    def ask(self, images: Images, batch: Batch, k_pos: PerSample | float = 0.0, k_neg: PerSample | float = 0.0) -> Asked:
        """Judge decoded images of the batch's prompts; `k_pos`, `k_neg` are the additive ramps of the relative form.

        With another number of images than prompts, each prompt stands for as many neighbouring images.
        """
        scores = self.scores(map_images(images, self.settings.image_mapping), batch)
        reward = self._maximised(scores, batch.step, k_pos, k_neg)
        return Asked(reward, _metrics(scores, reward))

    def scores(self, images: Images, batch: Batch) -> Scores:
        """The raw answers that the form needs, for images in [0, 1]."""
        words, features = self.settings.words, self.reward_model.encode(images)
        prompts = [prompt for prompt in batch.prompts for _ in range(len(images) // len(batch.prompts))]

        def score(phrases: list[str]) -> Tensor:
            each = [self.reward_model.score(features, [f"{phrase}. {prompt}" for prompt in prompts]) for phrase in phrases]
            return torch.stack(each).mean(0)

        pos = score(chosen(words.positive, words.order, batch.step)) if words.positive and self.reward_model.reads_prompt else None
        neg = score(chosen(words.negative, words.order, batch.step)) if self.settings.form != "absolute" else None
        plain = self.reward_model.score(features, prompts) if self.settings.form == "anchored" or pos is None else None
        return Scores(pos, neg, plain)

    def _maximised(self, scores: Scores, step: int, k_pos: PerSample | float, k_neg: PerSample | float) -> PerSample:
        if scores.pos is None or scores.neg is None:
            score = scores.plain if scores.pos is None else scores.pos
            assert score is not None
            return score
        if scores.plain is not None:
            self.reference.see(scores.plain, step, self.together)
            return preference.anchored_reward(scores.pos, scores.neg, scores.plain, self.reference.value, self.settings.anchor.tolerance)
        return preference.relative_reward(scores.pos, scores.neg, k_pos, k_neg)

    def state_dict(self) -> dict[str, Any]:
        return {"reference_sum": self.reference.total, "reference_count": self.reference.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference.total, self.reference.count = state["reference_sum"], state["reference_count"]


class Reference:
    """The base model's score of the bare prompt: its mean over the first updates and all ranks, when little has moved yet."""

    def __init__(self, updates: int) -> None:
        self.updates, self.total, self.count = updates, 0.0, 0

    def see(self, plain: PerSample, step: int, together: Together = ALONE) -> None:
        if step < self.updates:
            total, count = together.sum(torch.stack([plain.detach().double().sum(), torch.tensor(float(len(plain)), dtype=torch.float64).to(plain.device)]))
            self.total += float(total)
            self.count += int(count)

    @property
    def value(self) -> float:
        return self.total / self.count


def require_text_side(reward: Reward, form: str) -> None:
    """Refuse a relative or anchored form of a reward that ignores the prompt: both phrasings would get one score."""
    if form != "absolute" and not reward.reads_prompt:
        raise DirectAlignError(
            f"reward.name {reward.name} ignores prompts, so method.form {form} has no two scores to compare: "
            "set method.form: absolute, or take a reward with a text side (reward.name: clip)"
        )


NO_GRADIENT = (
    "reward.name {name} is a black box, and method.name {method} needs its gradient with respect to the image: "
    "set method.name: flow_grpo, which asks for scores alone, or take a differentiable reward (reward.name: clip)"
)


def require_gradient(reward: Reward, method: str) -> None:
    """Refuse a black box where the method differentiates through the reward."""
    if not reward.differentiable:
        raise DirectAlignError(NO_GRADIENT.format(name=reward.name, method=method))


def map_images(images: Images, mapping: str) -> Images:
    """To [0, 1], as the reward expects: clamped (no gradient outside), or stretched per image (no pay for brightness)."""
    if mapping == "clamp":
        return images.clamp(0, 1)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low)


def chosen(words: list[str], order: str, step: int) -> list[str]:
    """The phrases of this step: the next of the list, the first, or all (their scores are averaged)."""
    return {"cycle": [words[step % len(words)]], "fixed": words[:1], "average": words}[order]


def _metrics(scores: Scores, reward: Tensor) -> dict[str, float]:
    named = {"reward": reward, "score_pos": scores.pos, "score_neg": scores.neg, "score_plain": scores.plain}
    return {name: float(value.detach().mean()) for name, value in named.items() if value is not None}
