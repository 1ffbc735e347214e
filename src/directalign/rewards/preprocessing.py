"""CLIP preprocessing that lets the gradient through: resize the short side, cut the centre, normalise.

The settings come from the folder's own `preprocessor_config.json`. Equals transformers' processor up to its rounding to
8 bits; like the official trainers, values that bicubic resizing carries past [0, 1] are kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..types import DirectAlignError, Images

Pixels = Float[Tensor, "b 3 rows columns"]
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocessing:
    """How images in [0, 1] reach a CLIP: `size` is the short side, or (height, width) where the folder says so.

    `rounded_centre`: an odd border is halved as torchvision does (to the even number), and not downwards as transformers does.
    """

    size: int | tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str = "bicubic"
    rounded_centre: bool = False

    @classmethod
    def read(cls, folder: Path) -> Preprocessing:
        """From `preprocessor_config.json`, or the `processor_config.json` that newer transformers write."""
        file, settings = read_settings(folder)
        try:
            return cls(
                size=_size(settings["size"]),
                crop=_pair(settings["crop_size"] if "crop_size" in settings else _uncropped(settings["size"])),
                mean=tuple(settings["image_mean"]),
                std=tuple(settings["image_std"]),
                mode=_RESAMPLING[settings.get("resample", 3)],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DirectAlignError(f"{file}: cannot read {error} of the image settings; copy the file from the original checkpoint") from error

    def __call__(self, images: Images) -> Pixels:
        """Images (b, 3, h, w) in [0, 1] to what the vision tower takes, (b, 3, rows, columns) normalised."""
        size = self._resized(images.shape[-2], images.shape[-1])
        if size != tuple(images.shape[-2:]):
            images = F.interpolate(images, size, mode=self.mode, antialias=True, align_corners=False)
        (height, width), (cut_height, cut_width) = size, self.crop
        top, left = self._half(height - cut_height), self._half(width - cut_width)
        images = images[..., top : top + cut_height, left : left + cut_width]
        mean, std = (torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def _half(self, border: int) -> int:
        return round(border / 2) if self.rounded_centre else border // 2

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.size, tuple):
            return self.size
        short, long = min(height, width), max(height, width)
        longer = int(self.size * long / short)
        return (self.size, longer) if height <= width else (longer, self.size)


def read_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file of a folder's image settings, and what it says. Raises DirectAlignError: missing, or not JSON."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = folder / name
        if file.exists():
            try:
                settings = json.loads(file.read_text())
            except ValueError as error:
                raise DirectAlignError(f"{file}: not readable as JSON ({error}); copy it again from the original checkpoint") from error
            return file, settings.get("image_processor", settings)
    raise DirectAlignError(f"{folder}: preprocessor_config.json is missing; copy it from the original checkpoint")


def _size(size: int | dict[str, int]) -> int | tuple[int, int]:
    if isinstance(size, dict):
        return size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    return size


def _uncropped(size: int | dict[str, int]) -> dict[str, int]:
    if not isinstance(size, dict) or "height" not in size:
        raise KeyError("crop_size")  # a short side alone leaves oblong images oblong
    return size


def _pair(size: int | dict[str, int]) -> tuple[int, int]:
    return (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
