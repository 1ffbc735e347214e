"""Preprocessing of the Qwen-VL kind that lets the gradient through: resize to whole cells of patches, normalise, cut into patches.

An image keeps its shape as nearly as multiples of patch·merge allow, and its number of pixels lies within the folder's bounds
(`preprocessor_config.json`). As by Pillow when these models were made, rows are resized first, then columns, and the range ends at
[0, 1] each time; here half an 8-bit level farther out, which rounding takes back, so that flat white keeps its gradient.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..types import DirectAlignError, Images

Patches = Float[Tensor, "n p"]
HALF_LEVEL = 0.5 / 255
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILES = ("preprocessor_config.json", "processor_config.json")
BICUBIC = 3
MOST_OBLONG = 200


@dataclass(frozen=True)
class VlmPixels:
    """How images in [0, 1] reach the vision tower: `patch` pixels along a side, `merge` patches along a token's side, `frames` per patch."""

    patch: int = 14
    merge: int = 2
    frames: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def read(cls, folder: Path, key: str) -> VlmPixels:
        """From the folder's own settings; what they leave out is as for Qwen2-VL. Raises DirectAlignError for none, or none of this kind."""
        file = next((folder / name for name in FILES if (folder / name).exists()), None)
        if file is None:
            raise DirectAlignError(f"{key}: {folder}: preprocessor_config.json is missing; copy it from the original checkpoint")
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            return cls._of(told.get("image_processor", told))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DirectAlignError(f"{key}: {file}: no image settings of a Qwen VL ({error}); copy the file from the original checkpoint") from error

    @classmethod
    def _of(cls, told: dict[str, Any]) -> VlmPixels:
        if told.get("resample", BICUBIC) != BICUBIC:
            raise ValueError(f"resample {told['resample']}, known is {BICUBIC}, bicubic")
        size = told.get("size") or {}
        least = told.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or cls.min_pixels
        most = told.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or cls.max_pixels
        sides = int(told.get("patch_size", cls.patch)), int(told.get("merge_size", cls.merge)), int(told.get("temporal_patch_size", cls.frames))
        return cls(*sides, int(least), int(most), tuple(told.get("image_mean") or CLIP_MEAN), tuple(told.get("image_std") or CLIP_STD))

    def bounded(self, max_pixels: int | None) -> VlmPixels:
        """With at most `max_pixels` in an image, where given; the lower bound gives way."""
        return self if max_pixels is None else replace(self, min_pixels=min(self.min_pixels, max_pixels), max_pixels=max_pixels)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing. Raises DirectAlignError for an image more oblong than 200 to 1, which no Qwen VL takes."""
        if max(height, width) > MOST_OBLONG * min(height, width):
            raise DirectAlignError(f"an image of {height} x {width} is more oblong than {MOST_OBLONG} to 1; generate a squarer one")
        cell = self.patch * self.merge
        rows, columns = max(cell, round(height / cell) * cell), max(cell, round(width / cell) * cell)
        if rows * columns > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            return max(cell, math.floor(height / shrink / cell) * cell), max(cell, math.floor(width / shrink / cell) * cell)
        if rows * columns < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            return math.ceil(height * grow / cell) * cell, math.ceil(width * grow / cell) * cell
        return rows, columns

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image."""
        rows, columns = self.size(height, width)
        return rows // self.patch, columns // self.patch

    def __call__(self, images: Images) -> Patches:
        """Images (b, 3, h, w) in [0, 1] to patches (b · rows · columns, 3 · frames · patch²), one image after the other, as the tower takes them."""
        height, width = self.size(images.shape[-2], images.shape[-1])
        images = _resized(_resized(images, images.shape[-2], width), height, width)
        mean, std = (torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return self._cut((images - mean) / std)

    def _cut(self, images: Tensor) -> Tensor:
        """Patches in the order of tokens: the merge² patches that become one token stand together. A still image fills all frames."""
        cell = self.patch * self.merge
        rows, columns = images.shape[-2] // cell, images.shape[-1] // cell
        parts = images.reshape(-1, 3, rows, self.merge, self.patch, columns, self.merge, self.patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
        frames = parts[..., None, :, :].expand(*parts.shape[:6], self.frames, self.patch, self.patch)
        return frames.reshape(-1, 3 * self.frames * self.patch**2)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if tuple(images.shape[-2:]) == (height, width):
        return images
    resized = F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-HALF_LEVEL, 1 + HALF_LEVEL)
