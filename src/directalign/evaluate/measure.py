"""One measurement: images of the fixed pairs, what the reward and the judges say of them, and how far they drifted.

Drift is measured against a reference set of images for the same prompts: real photographs of the captions in the
embedded world, which the renderer provides, and the base model's own images elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import config
from ..core.noising import generator_for
from ..families.loading import load_family
from ..interfaces import ALONE, Family, Judge, Reward, Together
from ..rewards.mixture import MixReward
from ..types import Images, PerSample
from ..world.scenes import render, scenes_of
from . import drift
from .diversity import diversity, diversity_pairs
from .generate import base_weights, generate
from .intervals import rate
from .pairs import Pairs, fixed_pairs, measured_prompts

RATES = ("photo_rate", "content")
MEANS = ("reward", "score_pos", "score_neg", *drift.STATISTICS)
STYLE = "style_"
"""What a judge's answers about single styles begin with; their means are reported."""
OF_ONE = "reward_"
"""What the plain score of one reward among several begins with, before its label."""

Reference = Callable[[Pairs], Images]


class Measurer:
    """Measures the family's present weights on the first `num_pairs` of the run's fixed pairs.

    `reward` and `judge` may be None: their numbers are then left out. `reference` makes the images that drift is measured
    against; None takes `photographs` where the world's judge is asked for, the base model's images elsewhere. Ranks that
    measure `together` share the images among them, and rank 0 judges.
    """

    def __init__(
        self, run: config.Run, family: Family, reward: Reward | None, judge: Judge | None, reference: Reference | None = None, together: Together = ALONE
    ) -> None:
        self.run, self.family, self.reward, self.judge, self.together = run, family, reward, judge, together
        self.device = next(family.denoiser.parameters()).device
        prompts = measured_prompts(run.data)
        self.pairs = fixed_pairs(prompts, run.evaluate.num_pairs)
        self._diversity_pairs = diversity_pairs(prompts, run.evaluate.diversity_prompts)
        self._reference = reference or (photographs if run.evaluate.judge == "world" else self.base_images)
        self._references: Images | None = None

    def prepare(self) -> None:
        """Make the base model's images while the family is that model: where all weights are trained, it is in there no longer."""
        if self.run.model.tune == "full" and self._reference == self.base_images:
            self._references = self._generate(self.pairs)

    def measure(self, num_pairs: int) -> dict[str, Any]:
        """{"photo_rate": {value, low, high, n}, "content": {...}, "color_drift", "reward", "brightness", ..., "seconds"}.

        `reward` is the mean score under the plain prompt (of a mixture also that of each member, `reward_<label>`), `score_pos` and
        `score_neg` those under the control phrases;
        `diversity` is there when `evaluate.diversity_prompts` asks for it. Ranks other than 0 help to make the images and
        get nothing back.
        """
        start = time.perf_counter()
        images, many = self.images(num_pairs), self._generate(self._diversity_pairs) if len(self._diversity_pairs) else None
        _ = self.references  # made by all ranks
        if self.together.rank > 0:
            return {}
        measured = self.summary(images, self.per_image(images))
        return {**measured, **({"diversity": diversity(many)} if many is not None else {}), "seconds": time.perf_counter() - start}

    def images(self, num_pairs: int) -> Images:
        """Images (n, 3, H, W) of the first pairs, under the present weights."""
        return self._generate(self.pairs.first(num_pairs))

    def _generate(self, pairs: Pairs) -> Images:
        return generate(self.family, pairs.prompts, pairs.seeds, self.run.rollout, self.run.evaluate.batch_size, self.together)

    def base_images(self, pairs: Pairs) -> Images:
        """The same pairs from the model before training; where all weights are trained it is loaded anew for the purpose."""
        settings = self.run.rollout, self.run.evaluate.batch_size, self.together
        if self.run.model.tune == "full":
            base = load_family(self.run.model, self.device)
            return generate(base, pairs.prompts, pairs.seeds, *settings)
        with base_weights(self.family):
            return generate(self.family, pairs.prompts, pairs.seeds, *settings)

    @property
    def references(self) -> Images:
        """Reference images of all pairs, made when first asked for and kept."""
        if self._references is None:
            self._references = self._reference(self.pairs)
        return self._references

    @torch.no_grad()
    def per_image(self, images: Images) -> dict[str, PerSample]:
        """Every number there is one of per image, for images of the first pairs: scores, judgements, drift statistics."""
        prompts = self.pairs.first(len(images)).prompts
        judged = self.judge(images, prompts) if self.judge else {}
        return {**self._scores(images, prompts), **{name: answer.cpu() for name, answer in judged.items()}, **drift.statistics(images)}

    def summary(self, images: Images, each: Mapping[str, PerSample]) -> dict[str, Any]:
        """Means over the pairs, with intervals where they are rates, and the colour drift of the whole set."""
        rates = {name: rate(each[name]) for name in RATES if name in each}
        averaged = [name for name in each if name in MEANS or name.startswith((STYLE, OF_ONE))]
        means = {name: float(each[name].double().mean()) for name in averaged}
        return {**rates, "color_drift": drift.color_drift(images, self.references[: len(images)]), **means}

    def _scores(self, images: Images, prompts: tuple[str, ...]) -> dict[str, PerSample]:
        if self.reward is None:
            return {}
        words = self.run.method.words
        asked = {"reward": [""], **({"score_pos": words.positive, "score_neg": words.negative} if self.reward.reads_prompt else {})}
        size = self.run.evaluate.batch_size
        parts = [_score_batch(self.reward, asked, images[i : i + size].to(self.device), prompts[i : i + size]) for i in range(0, len(images), size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def photographs(pairs: Pairs) -> Images:
    """The renderer's own photographs of the pairs' captions, one fixed draw of place, light and texture each."""
    drawn = [render(scenes_of([prompt]), generator_for(seed)) for prompt, seed in zip(pairs.prompts, pairs.seeds, strict=True)]
    return torch.cat(drawn)


def _score_batch(reward: Reward, asked: Mapping[str, list[str]], images: Images, prompts: tuple[str, ...]) -> dict[str, PerSample]:
    """Mean score over the phrases of each question ("" is the bare prompt)."""
    features = reward.encode(images)
    scores = {}
    for name, phrases in asked.items():
        each = [reward.score(features, [f"{phrase}. {prompt}" if phrase else prompt for prompt in prompts]) for phrase in phrases]
        if each:
            scores[name] = torch.stack(each).mean(0).float().cpu()
    if isinstance(reward, MixReward):
        scores |= {f"{OF_ONE}{label}": score.float().cpu() for label, score in reward.each(features, prompts).items()}
    return scores
