"""Prompts that the training has nothing to do with: what it did to them is what leaked.

An alignment that learned a preference leaves them alone; one that found a trick plays it everywhere. So their images are scored as
the trained ones are, and their colours are held against the base model's own images of the same seeds. Of the embedded world they are
held-out captions that name a style of their own ("Oil painting. a red star ..."), one that no wanted phrase of the run names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import config
from ..data.prompts import held_out_captions, read_prompts
from ..interfaces import Judge
from ..metrics import OFF_TOPIC
from ..stats import rate_interval
from ..toyworld.scenes import STYLE_WORDS
from ..types import DirectAlignError, Images, PerSample
from . import image_metrics
from .eval_prompts import FIRST_SEED, Pairs, fixed_pairs

KEY = "evaluate.control_prompts"
WORLD = "world"
FIRST_OFF_TOPIC_SEED = 3 * FIRST_SEED
STYLE_KEPT, CONTENT = f"{OFF_TOPIC}style_kept", f"{OFF_TOPIC}content"

Score = Callable[[Images, tuple[str, ...]], dict[str, PerSample]]


def off_topic_prompts(source: str, words: config.ControlPhrases) -> list[str]:
    """The prompts of a recipe's `evaluate.control_prompts`.

    Raises: DirectAlignError for a list that cannot be read, and for "world" where the wanted phrases name every style of it.
    """
    if source != WORLD:
        try:
            return read_prompts(source)
        except DirectAlignError as error:
            raise DirectAlignError(f"{KEY}: {error}") from error
    named = {style for style, phrases in STYLE_WORDS.items() if set(phrases) & set(words.positive)}
    others = [phrases[0] for style, phrases in STYLE_WORDS.items() if style not in named]
    if not others:
        raise DirectAlignError(
            f"{KEY}: world: method.control_phrases.positive names every style of the world, so none of its prompts is off topic; give a file of prompts"
        )
    return [f"{phrase}. {caption}" for caption in held_out_captions() for phrase in others]


class OffTopic:
    """The control prompts of a run on fixed seeds of their own; `generate` makes images of pairs under the present weights, `base` under the base model's."""

    def __init__(
        self,
        run: config.RunConfig,
        generate: Callable[[Pairs], Images],
        base: Callable[[Pairs], Images],
    ) -> None:
        assert run.evaluate.control_prompts is not None
        prompts = off_topic_prompts(run.evaluate.control_prompts, run.method.control_phrases)
        self.pairs = off_topic_pairs(
            prompts, min(run.evaluate.num_samples_during, run.evaluate.num_samples)
        )
        self._generate, self._base = generate, base
        self._base_images: Images | None = None
        self.styles = (
            styles_named(self.pairs.prompts) if run.evaluate.control_prompts == WORLD else ()
        )

    def prepare(self) -> None:
        """Make the base model's images while the weights are still its own."""
        self._base_images = self._generate(self.pairs)

    def images(self) -> Images:
        """Images (n, 3, H, W) of all pairs under the present weights."""
        return self._generate(self.pairs)

    @property
    def base_images(self) -> Images:
        """The base model's images of the same pairs, made when first asked for and kept."""
        if self._base_images is None:
            self._base_images = self._base(self.pairs)
        return self._base_images

    def per_image(self, images: Images, score: Score, judge: Judge | None) -> dict[str, PerSample]:
        """Every score under its usual name with `off_topic_` before it; of the world's prompts also whether style and content are as they ask."""
        found = {
            f"{OFF_TOPIC}{name}": values
            for name, values in score(images, self.pairs.prompts).items()
        }
        if judge is None or not self.styles:
            return found
        judged = judge(images, self.pairs.prompts)
        kept = [judged[f"style_{style}"][place] for place, style in enumerate(self.styles)]
        return {**found, STYLE_KEPT: torch.stack(kept).cpu(), CONTENT: judged["content"].cpu()}

    def summary(self, images: Images, each: Mapping[str, PerSample]) -> dict[str, Any]:
        """Means over the pairs, rates with their intervals, and `off_topic_color_drift` from the base model's images."""
        told = {
            name: rate_interval(values).as_dict()
            if name in (STYLE_KEPT, CONTENT)
            else float(values.double().mean())
            for name, values in each.items()
        }
        return {
            **told,
            f"{OFF_TOPIC}color_drift": image_metrics.color_drift(images, self.base_images),
        }


def off_topic_pairs(prompts: list[str], count: int) -> Pairs:
    """`count` pairs in the fixed shuffled order, with seeds that nothing else is measured on."""
    pairs = fixed_pairs(prompts, count)
    return Pairs(pairs.prompts, tuple(range(FIRST_OFF_TOPIC_SEED, FIRST_OFF_TOPIC_SEED + count)))


def styles_named(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """The world's style that each prompt begins with."""
    style_of = {phrases[0]: style for style, phrases in STYLE_WORDS.items()}
    return tuple(style_of[prompt.split(". ")[0]] for prompt in prompts)
