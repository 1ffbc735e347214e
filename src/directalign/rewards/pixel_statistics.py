"""Pixel statistics as rewards: for tests, as baselines, and as a template for a new reward.

They ignore the prompt, so a relative reward cannot be formed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from .. import config
from ..types import Images, PerSample
from .common import BaseReward, Device

Statistic = Literal["brightness", "saturation", "redness"]


def brightness(images: Images) -> PerSample:
    """Mean of all channels, 0 black to 1 white."""
    return images.mean((1, 2, 3))


def saturation(images: Images) -> PerSample:
    """Mean over pixels of largest minus smallest channel, 0 gray to 1 pure colour."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def redness(images: Images) -> PerSample:
    """Mean red minus the mean of green and blue, -1 to 1."""
    red, green, blue = images.mean((2, 3)).unbind(1)
    return red - (green + blue) / 2


STATISTICS: dict[Statistic, Callable[[Tensor], Tensor]] = {
    "brightness": brightness,
    "saturation": saturation,
    "redness": redness,
}


class PixelReward(BaseReward):
    """`scale` times one statistic (`interfaces.Reward`)."""

    name = "pixels"
    reads_prompt = False
    file_keys = ()

    def __init__(self, statistic: Statistic, scale: float = 1.0) -> None:
        self.statistic, self.scale = STATISTICS[statistic], scale

    @classmethod
    def _load(cls, settings: config.PixelStatisticsConfig, device: Device, key: str) -> PixelReward:
        """The reward of a recipe section; it runs on the images' device."""
        del device, key
        return cls(settings.statistic, settings.scale)

    @classmethod
    def meta(cls, settings: config.PixelStatisticsConfig, key: str, configs: object) -> PixelReward:
        """The reward itself, which has no weights."""
        del configs
        return cls.from_config(settings, key=key)

    def encode(self, images: Images) -> PerSample:
        """The statistic itself, (b,)."""
        return self.statistic(images)

    def score(self, features: PerSample, prompts: Sequence[str]) -> PerSample:
        """Larger is more of the statistic; `prompts` are ignored."""
        del prompts
        return self.scale * features
