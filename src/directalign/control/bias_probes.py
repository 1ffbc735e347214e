"""Changes to a picture that no control word asks for and that rewards are known to pay for: tints, blur, light, saturation, edges.

Strengths are such that the change is seen at a glance. They stand in where a reward's own taste is not known; arXiv 2509.06942 names
red (HPSv2), purple (PickScore), over-exposure (ImageReward) and smoothness (all).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from ..types import Images

TINT, LIGHT, SATURATION, EDGES, BLUR = 0.1, 0.1, 1.5, 1.0, 64
"""Added to a channel, added to all, factor on colour, share of detail added, and the part of the shorter side that the blur averages over."""


def tinted(images: Images, cast: tuple[float, float, float]) -> Images:
    """A colour cast of strength `TINT`; brightness stays where the three parts of `cast` sum to 0."""
    return (images + TINT * torch.tensor(cast, device=images.device)[:, None, None]).clamp(0, 1)


def brighter(images: Images) -> Images:
    """All channels raised by `LIGHT`: towards over-exposure."""
    return (images + LIGHT).clamp(0, 1)


def saturated(images: Images) -> Images:
    """Distance of every pixel from its grey, times `SATURATION`."""
    return torch.lerp(images.mean(1, keepdim=True), images, SATURATION).clamp(0, 1)


def blurred(images: Images) -> Images:
    """Mean over a square of a 64th of the shorter side, 3 pixels at least."""
    side = max(3, min(images.shape[-2:]) // BLUR // 2 * 2 + 1)
    padded = F.pad(images, (side // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, side, stride=1)


def sharpened(images: Images) -> Images:
    """What the blur takes away, added once more."""
    return (images + EDGES * (images - blurred(images))).clamp(0, 1)


PROBES: dict[str, Callable[[Images], Images]] = {
    "red tint": partial(tinted, cast=(1.0, -0.5, -0.5)),
    "purple tint": partial(tinted, cast=(0.5, -1.0, 0.5)),
    "green tint": partial(tinted, cast=(-0.5, 1.0, -0.5)),
    "brightness": brighter,
    "saturation": saturated,
    "blur": blurred,
    "sharpening": sharpened,
}
