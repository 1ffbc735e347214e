"""Analytic image statistics that tell hacking from improvement: colour, light and detail, all without a network.

A reward is often raised by a tint, by gloss or by blur. `color_drift` measures the tint alone: brightness and an even
loss of saturation do not move it, a red film over every image moves it by exactly its strength.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..types import Images, PerSample

LUMA = (0.2126, 0.7152, 0.0722)
DARK = 0.1


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


STATISTICS = {
    "brightness": brightness,
    "saturation": saturation,
    "sharpness": sharpness,
    "high_frequency": high_frequency,
    "dark_share": dark_share,
}


def statistics(images: Images) -> dict[str, PerSample]:
    """All of `STATISTICS`, each (b,)."""
    return {name: measure(images) for name, measure in STATISTICS.items()}
