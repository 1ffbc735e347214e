"""How images reach a detector: resized, normalised, of OWLv2 first padded to a square; settings from its own `preprocessor_config.json`.

Equals transformers' processors of Pillow up to their rounding to 8 bits (OWLv2's rounds nothing), without torchvision. Left out: padding
of a batch of different sizes, for images come one size at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...rewards.common import read_settings
from ...types import DirectAlignError, Images

BILINEAR = 2
"""Pillow's number for the only way of resizing that the published detectors use."""
CUT_OFF = 4
"""A Gaussian is cut off at so many standard deviations."""

Pixels = Float[Tensor, "b 3 rows columns"]


@dataclass(frozen=True)
class DetectorPixels:
    """`size` is (height, width), or the (shortest, longest) edge where `keeps_ratio`; sides become multiples of `divisor`.

    `square`: padded to a square with black, then smoothed and resized. `mean` and `std` are 0 and 1 where nothing is normalised.
    """

    size: tuple[int, int]
    keeps_ratio: bool
    divisor: int
    square: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path, divisor: int = 1, square: bool = False) -> DetectorPixels:
        """From a detector's folder; `divisor` is the usual one of its kind. Raises DirectAlignError, which names the file."""
        file, settings = read_settings(folder)
        try:
            normalised, size = settings.get("do_normalize", True), settings["size"]
            if settings.get("resample", BILINEAR) != BILINEAR:
                raise ValueError("resample")
            return cls(
                size=_pair(size),
                keeps_ratio="shortest_edge" in size,
                divisor=settings.get("size_divisor", divisor) or 1,
                square=square,
                mean=tuple(settings["image_mean"]) if normalised else (0.0,) * 3,
                std=tuple(settings["image_std"]) if normalised else (1.0,) * 3,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DirectAlignError(f"{file}: cannot read {error} of the image settings; copy the file from the original checkpoint") from error

    def __call__(self, images: Images) -> Pixels:
        """Images (b, 3, h, w) in [0, 1] to what the detector takes, (b, 3, rows, columns)."""
        if self.square:
            longer = max(images.shape[-2:])
            images = F.pad(images, (0, longer - images.shape[-1], 0, longer - images.shape[-2]))
        size = self.resized(images.shape[-2], images.shape[-1])
        images = _smoothed_and_resized(images, size) if self.square else F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size is brought to."""
        size = _in_ratio(height, width, *self.size) if self.keeps_ratio else self.size
        return math.ceil(size[0] / self.divisor) * self.divisor, math.ceil(size[1] / self.divisor) * self.divisor


def _pair(size: Any) -> tuple[int, int]:
    names = ("shortest_edge", "longest_edge") if "shortest_edge" in size else ("height", "width")
    return int(size[names[0]]), int(size[names[1]])


def _in_ratio(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """The shorter side becomes `shortest`, or less where the longer one would pass `longest`."""
    short, long = min(height, width), max(height, width)
    exact = shortest if long / short * shortest <= longest else longest * short / long
    small = round(exact)
    large = int(exact * long / short)
    return (small, large) if height <= width else (large, small)


def _smoothed_and_resized(images: Images, size: tuple[int, int]) -> Pixels:
    """Linear interpolation after a Gaussian of standard deviation (factor − 1) / 2 where an axis shrinks."""
    for axis, wanted in zip((-2, -1), size, strict=True):
        images = _smoothed(images, axis, max(0.0, (images.shape[axis] / wanted - 1) / 2))
    return F.interpolate(images, size, mode="bilinear", align_corners=False).clamp(images.min(), images.max())


def _smoothed(images: Images, axis: int, deviation: float) -> Images:
    """One axis convolved with a Gaussian, mirrored at its ends."""
    radius = int(CUT_OFF * deviation + 0.5)
    if radius == 0:
        return images
    places = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-0.5 * (places / deviation).square())
    kernel = (weights / weights.sum()).reshape((-1, 1) if axis == -2 else (1, -1)).expand(3, 1, *((-1, 1) if axis == -2 else (1, -1)))
    padded = F.pad(images, (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0), mode="reflect")
    return F.conv2d(padded, kernel, groups=3)
