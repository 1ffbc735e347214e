"""The base model's own prediction, plain or asked with the positive phrases, as a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import config
from ..diffusion.path import expand_like
from ..diffusion.sampling import encode, predict
from ..interfaces import Model
from ..models.lora import ReferenceModel
from ..types import Conditioning, Latents, PerSample


class BaseTarget:
    """Predictions of the model before training; call it before a graph is built.

    `asked` None: under the conditioning of the training call. Otherwise under the positive phrases,
    several of a step averaged, with `asked`'s guidance: extrapolated from the prediction under the
    empty prompt or the negative phrases, as in classifier-free guidance (arXiv 2207.12598).
    """

    def __init__(
        self, model: Model, phrases: config.ControlPhrases, asked: config.AskedConfig | None = None
    ) -> None:
        self.model, self.phrases, self.asked = model, phrases, asked
        self.base = ReferenceModel(model.denoiser)

    @torch.no_grad()
    def __call__(
        self,
        step: int,
        cond: Conditioning,
        x_t: Latents,
        sigma: PerSample,
        kept: Sequence[bool] = (),
    ) -> Latents:
        """Of update `step`: (b, c, h, w) at x_t and noise levels `sigma` (b,), guided as `cond`.

        Rows that are `kept` are never asked.
        """
        with self.base.active():
            if self.asked is None:
                return predict(self.model, cond, x_t, sigma)
            step += self.phrases.cycle_start
            positive = self._mean(
                self._texts(self.phrases.positive, step, cond, kept), cond, x_t, sigma
            )
            if self.asked.guidance == 1:
                return positive
            texts = [_unless_kept([""] * len(cond.prompts), cond, kept)]
            if self.asked.against == "negative":
                texts = self._texts(self.phrases.negative, step, cond, kept)
            other = self._mean(texts, cond, x_t, sigma)
            extra = torch.where(sigma <= self.asked.guidance_below, self.asked.guidance - 1, 0.0)
            return positive + expand_like(extra, positive) * (positive - other)

    def _texts(
        self, side: list[str], step: int, cond: Conditioning, kept: Sequence[bool]
    ) -> list[list[str]]:
        """The prompts under each phrase of a step."""
        phrases = select_phrases(side, self.phrases.order, step)
        return [
            _unless_kept([f"{phrase}. {prompt}" for prompt in cond.prompts], cond, kept)
            for phrase in phrases
        ]

    def _mean(
        self, texts: list[list[str]], cond: Conditioning, x_t: Latents, sigma: PerSample
    ) -> Latents:
        """Mean prediction over several sets of prompts."""
        guidance = cond.embedded_guidance, cond.cfg_scale, cond.truncate_timestep
        asked = (encode(self.model, each, cond.sources).guided(*guidance) for each in texts)
        return torch.stack([predict(self.model, each, x_t, sigma) for each in asked]).mean(0)


def _unless_kept(texts: list[str], cond: Conditioning, kept: Sequence[bool]) -> list[str]:
    """`texts`, and for kept rows the prompt itself."""
    flags = kept or [False] * len(texts)
    rows = zip(texts, cond.prompts, flags, strict=True)
    return [prompt if keeps else text for text, prompt, keeps in rows]


def select_phrases(phrases: list[str], order: str, step: int) -> list[str]:
    """Phrases of a step: "cycle" the next one, "fixed" the first, "average" all of them."""
    if order == "average":
        return phrases
    return [phrases[step % len(phrases) if order == "cycle" else 0]]
