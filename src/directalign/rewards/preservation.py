"""Preservation of the source outside the edit, for models that edit images.

Minus the mean squared difference between an edited image and its source, over the pixels that the
mask leaves out: the "background preservation" (MSE) of PIE-Bench (arXiv 2310.01506). Without a
mask it is taken over the whole image, where it costs the edit itself too: give it a small weight in
a mixture. It ignores the prompt, so a relative reward cannot be formed from it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import config
from ..types import Images, PerSample, Sources
from .common import BaseReward, Device


class PreservationReward(BaseReward):
    """`scale` times minus the masked mean squared difference (`interfaces.Reward`)."""

    name = "preservation"
    reads_prompt = False
    reads_sources = True
    file_keys = ()

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    @classmethod
    def _load(
        cls, settings: config.PreservationConfig, device: Device, key: str
    ) -> PreservationReward:
        """The reward of a recipe section; it runs on the images' device."""
        del device, key
        return cls(settings.scale)

    @classmethod
    def meta(
        cls, settings: config.PreservationConfig, key: str, configs: object
    ) -> PreservationReward:
        """The reward itself, which has no weights."""
        del configs
        return cls.from_config(settings, key=key)

    def encode(self, images: Images, sources: Sources) -> PerSample:
        """Mean over pixels outside the mask and channels of (image - source)², (b,): 0 for the same
        image, 1 at the most; 0 where a mask covers all of an image."""
        kept = (1 - sources.masks).to(images)
        squares = kept * (images - sources.images.to(images)).square()
        return squares.mean(1).sum((1, 2)) / kept.sum((1, 2, 3)).clamp(min=1)

    def score(self, features: PerSample, prompts: Sequence[str]) -> PerSample:
        """0 is the source itself outside the mask; `prompts` are ignored."""
        del prompts
        return -self.scale * features
