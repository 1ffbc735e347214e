"""Image settings of a checkpoint, and the preprocessing of Qwen VLs by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import named
from ..types import DirectAlignError, Images
from . import text
from .tensors import resize

IMAGE_SETTINGS = ("preprocessor_config.json", "processor_config.json")
"""Names of the file of image settings; newer transformers write the second."""
Pixels = Float[Tensor, "b 3 rows columns"]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def normalised(images: Images, mean: Sequence[float], std: Sequence[float]) -> Pixels:
    """(images - mean) / std per channel."""
    mean_std = torch.tensor([mean, std], dtype=images.dtype, device=images.device)
    return (images - mean_std[0, :, None, None]) / mean_std[1, :, None, None]


def read_settings(folder: Path, key: str = "") -> tuple[Path, dict[str, Any]]:
    """The file of a folder's image settings, and its content; DirectAlignError if unreadable."""
    file = next((folder / name for name in IMAGE_SETTINGS if (folder / name).exists()), None)
    if file is None:
        place = f"{key}: {folder}" if key else str(folder)
        raise DirectAlignError(
            f"{place}: preprocessor_config.json is missing; copy it from the original checkpoint"
        )
    with named(key) if key else nullcontext():
        settings = text.read_json(file, "copy it again from the original checkpoint")
    return file, settings.get("image_processor", settings)


Patches = Float[Tensor, "n p"]
HALF_LEVEL = 0.5 / 255
BICUBIC = 3
MOST_OBLONG = 200


@dataclass(frozen=True)
class VlmPixels:
    """Preprocessing of images in [0, 1] for the vision tower.

    It resizes to multiples of patch·merge pixels within the bounds on the number of pixels.
    Like Pillow, it resizes columns, then rows, and clamps after each to [0, 1]; here half an 8-bit
    level wider, which rounding would undo, so that pure white keeps its gradient.

    `patch` pixels along a patch's side, `merge` patches along a token's side, `frames` per patch.
    """

    patch: int = 14
    merge: int = 2
    frames: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def read(cls, folder: Path, key: str) -> VlmPixels:
        """From the folder's settings; defaults are those of Qwen2-VL.

        Raises DirectAlignError: missing, unreadable, or of another kind.
        """
        file, found = read_settings(folder, key)
        return cls.of_settings(found, file, key)

    @classmethod
    def of_settings(cls, found: dict[str, Any], file: Path, key: str) -> VlmPixels:
        """As `read`, from the content of `file`."""
        try:
            if found.get("resample", BICUBIC) != BICUBIC:
                raise ValueError(f"resample {found['resample']}, known is {BICUBIC}, bicubic")
            size = found.get("size") or {}
            low, high = (
                int(found.get(name) or size.get(edge) or size.get(name) or usual)
                for name, edge, usual in (
                    ("min_pixels", "shortest_edge", cls.min_pixels),
                    ("max_pixels", "longest_edge", cls.max_pixels),
                )
            )
            return cls(
                int(found.get("patch_size", cls.patch)),
                int(found.get("merge_size", cls.merge)),
                int(found.get("temporal_patch_size", cls.frames)),
                *(low, high),
                tuple(found.get("image_mean") or CLIP_MEAN),
                tuple(found.get("image_std") or CLIP_STD),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DirectAlignError(
                f"{key}: {file}: no image settings of a Qwen VL ({error}); copy the file from the "
                "original checkpoint"
            ) from error

    @classmethod
    def of(cls, folder: Path | None, model: dict[str, Any], key: str) -> VlmPixels:
        """As `read`; without a folder, from a model's config.json within its bounds (`images`)."""
        if folder is not None:
            return cls.read(folder, key)
        vision = model["vision_config"]
        merge, frames = vision.get("spatial_merge_size", 2), vision.get("temporal_patch_size", 2)
        return cls(vision["patch_size"], merge, frames, **model.get("images", {}))

    def bounded(self, max_pixels: int | None) -> VlmPixels:
        """With at most `max_pixels` per image, if given; the lower bound is reduced to match."""
        if max_pixels is None:
            return self
        return replace(self, min_pixels=min(self.min_pixels, max_pixels), max_pixels=max_pixels)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing. Raises DirectAlignError above an aspect ratio of 200."""
        if max(height, width) > MOST_OBLONG * min(height, width):
            raise DirectAlignError(
                f"an image of {height} x {width} is more oblong than {MOST_OBLONG} to 1; generate "
                "a squarer one"
            )
        cell = self.patch * self.merge
        rows = max(cell, round(height / cell) * cell)
        columns = max(cell, round(width / cell) * cell)
        if rows * columns > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows = max(cell, math.floor(height / shrink / cell) * cell)
            columns = max(cell, math.floor(width / shrink / cell) * cell)
        elif rows * columns < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows = math.ceil(height * grow / cell) * cell
            columns = math.ceil(width * grow / cell) * cell
        return rows, columns

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image."""
        rows, columns = self.size(height, width)
        return rows // self.patch, columns // self.patch

    def __call__(self, images: Images) -> Patches:
        """Images (b, 3, h, w) in [0, 1] to patches (b · rows · columns, 3 · frames · patch²).

        One image after the other, as the tower takes them.
        """
        return self._cut(normalised(self.resized(images), self.mean, self.std))

    def resized(self, images: Images) -> Float[Tensor, "b 3 rows columns"]:
        """Images (b, 3, h, w) in [0, 1] at the size that `size` gives."""
        height, width = self.size(images.shape[-2], images.shape[-1])
        return _resized(_resized(images, images.shape[-2], width), height, width)

    def _cut(self, images: Tensor) -> Tensor:
        """Patches in token order, the merge² of one token adjacent; the image fills all frames."""
        cell = self.patch * self.merge
        rows, columns = images.shape[-2] // cell, images.shape[-1] // cell
        along = (self.merge, self.patch)
        parts = images.reshape(-1, 3, rows, *along, columns, *along)
        parts = parts.permute(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :]
        frames = parts.expand(*parts.shape[:6], self.frames, self.patch, self.patch)
        return frames.reshape(-1, 3 * self.frames * self.patch**2)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if tuple(images.shape[-2:]) == (height, width):
        return images
    return resize(images, (height, width), "bicubic").clamp(-HALF_LEVEL, 1 + HALF_LEVEL)
