"""Analytic image statistics that tell hacking from improvement: colour, light and detail, all without a network.

A reward is often raised by a tint, by gloss or by blur. `color_drift` measures the tint alone: brightness and an even
loss of saturation do not move it, a red film over every image moves it by exactly its strength.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..types import Images, PerSample

LUMA = (0.2126, 0.7152, 0.0722)
DARK = 0.1
EDGE = 0.1
LEVELS = 256


def luminance(images: Images) -> Float[Tensor, "b H W"]:
    """Rec. 709 weights on the stored values, in [0, 1]."""
    return torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))


def color_cast(images: Images) -> Float[Tensor, "b 3"]:
    """Mean colour minus its own grey, per image: sums to zero, unmoved by adding grey; (2/3, −1/3, −1/3) for pure red."""
    mean = images.mean((2, 3))
    return mean - mean.mean(1, keepdim=True)


def color_drift(images: Images, reference: Images) -> float:
    """Euclidean distance between the mean colour casts of two sets of the same prompts; 0 to about 0.8."""
    return (color_cast(images).mean(0) - color_cast(reference).mean(0)).norm().item()


def brightness(images: Images) -> PerSample:
    """Mean luminance, in [0, 1]."""
    return luminance(images).mean((1, 2))


def saturation(images: Images) -> PerSample:
    """Mean of the largest minus the smallest channel (chroma), in [0, 1]."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def sharpness(images: Images) -> PerSample:
    """Gradient energy: mean squared difference of neighbouring luminances, both directions added."""
    grey = luminance(images)
    return grey.diff(dim=1).square().mean((1, 2)) + grey.diff(dim=2).square().mean((1, 2))


def high_frequency(images: Images) -> PerSample:
    """Energy of the finest detail: mean square of luminance minus its 3×3 mean (edges replicated)."""
    grey = luminance(images)[:, None]
    smooth = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (grey - smooth).square().mean((1, 2, 3))


def dark_share(images: Images) -> PerSample:
    """Share of pixels whose luminance is below 0.1."""
    return (luminance(images) < DARK).float().mean((1, 2))


def entropy(images: Images) -> PerSample:
    """Shannon entropy of the histogram of luminance in 256 levels (Shannon 1948), in bits: 0 for a flat image, 8 where all levels are equally frequent."""
    levels = (luminance(images) * (LEVELS - 1)).round().long().clamp(0, LEVELS - 1).flatten(1)
    shares = torch.stack([torch.bincount(each, minlength=LEVELS) for each in levels]).to(images.dtype) / levels.shape[1]
    return torch.special.entr(shares).sum(1) / math.log(2)


def edge_density(images: Images) -> PerSample:
    """Share of pixels whose luminance differs by more than 0.1 from that of the next pixel right or below; 0 to 1, last row and column left out."""
    grey = luminance(images)
    below, right = grey.diff(dim=1)[:, :, :-1].abs(), grey.diff(dim=2)[:, :-1].abs()
    return (torch.maximum(below, right) > EDGE).to(images.dtype).mean((1, 2))


def casts(images: Images) -> dict[str, PerSample]:
    """The colour cast of every image: red, green and blue part, each in [−2/3, 2/3] and zero in sum, and its length, 0 to 0.82.

    Means of the parts over images are the cast of the set; the length is that of single images, whose casts need not be of one colour.
    """
    cast = color_cast(images)
    return {"color_cast": cast.norm(dim=1), **{f"{name}_cast": cast[:, channel] for channel, name in enumerate(("red", "green", "blue"))}}


STATISTICS = {
    "brightness": brightness,
    "saturation": saturation,
    "sharpness": sharpness,
    "high_frequency": high_frequency,
    "dark_share": dark_share,
    "entropy": entropy,
    "edge_density": edge_density,
}


def statistics(images: Images) -> dict[str, PerSample]:
    """All of `STATISTICS`, each (b,)."""
    return {name: measure(images) for name, measure in STATISTICS.items()}
