"""The colour of what was found, as a CLIP names it: the nearest of ten phrases to the cut-out thing, everything around it grey.

As GenEval has it: the image is cut to the thing's box, what is outside its mask turned grey (without a mask it stays), and each colour is the mean
of three ways to say it. Ten colours, of which one always fits best: a thing of two colours, or of none of them, gets a name all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...rewards.clip import ClipReward
from .found import Found

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {thing}", "a photo of a {color}-colored {thing}", "a photo of a {color} object")
GREY = 0.6
"""What hides the surroundings of a thing."""

Image = Float[Tensor, "3 H W"]


class ColorReader:
    """Names colours by a frozen CLIP; phrases are encoded once per kind of thing and kept."""

    def __init__(self, clip: ClipReward) -> None:
        self.clip = clip
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def read(self, image: Image, things: Sequence[Found], thing: str) -> list[str]:
        """The colour, of `COLORS`, of each of `things`, which are all a `thing`, in an image in [0, 1]."""
        features = torch.cat([self.clip.encode(cut_out(image, each)[None]) for each in things])
        return [COLORS[place] for place in (features @ self._directions(thing).T).argmax(1).tolist()]

    def _directions(self, thing: str) -> Float[Tensor, "c d"]:
        """One unit vector per colour."""
        if thing not in self._kept:
            phrases = [template.format(color=color, thing=thing) for color in COLORS for template in TEMPLATES]
            self._kept[thing] = F.normalize(self.clip.encode_text(phrases).reshape(len(COLORS), len(TEMPLATES), -1).mean(1), dim=-1)
        return self._kept[thing]


def cut_out(image: Image, found: Found) -> Float[Tensor, "3 rows columns"]:
    """The thing's box of an image, cut at the image's edges and at least a pixel large, with grey where its mask is not."""
    height, width = image.shape[-2:]
    left, top = (min(max(math.floor(at), 0), size - 1) for at, size in zip(found.box[:2], (width, height), strict=True))
    right, bottom = (max(min(math.ceil(at), size), low + 1) for at, size, low in zip(found.box[2:], (width, height), (left, top), strict=True))
    shown = image if found.mask is None else torch.where(found.mask.to(image.device), image, torch.full_like(image, GREY))
    return shown[:, top:bottom, left:right]
