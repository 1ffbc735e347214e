"""Decode one image, then crop and resize it.

Handles palettes, transparency (on white), 16 bits, EXIF orientation, colour profiles (to sRGB) and
truncation; what cannot be decoded is an `Unreadable` with its reason.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from ..io.colour import upright_srgb, warn_of_profile
from ..types import DirectAlignError, Sources

Picture = Path | bytes
"""An encoded image: a file, or its contents."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


class Unreadable(Exception):
    """The reason why a picture cannot be decoded."""


def load_image(
    picture: Picture, height: int, width: int, name: str | None = None
) -> Float[Tensor, "3 H W"]:
    """One image, centre-cropped and resized with antialiasing to (3, height, width) in [0, 1].

    Raises:
        DirectAlignError: it cannot be decoded; `name` identifies a `picture` that is not a file.
    """
    try:
        pixels = read_pixels(picture)
    except Unreadable as error:
        raise DirectAlignError(
            f"{name or picture}: {error}; if it was readable when training started, restore it"
        ) from error
    cropped = _centre_crop(torch.from_numpy(pixels).permute(2, 0, 1), height / width)
    resized = F.interpolate(
        cropped[None], (height, width), mode="bicubic", align_corners=False, antialias=True
    )
    return resized[0].clamp(0, 1)


@dataclass(frozen=True)
class Source:
    """The image that a prompt edits, and its mask: white where the edit may change it."""

    image: Path
    mask: Path | None = None


def load_sources(sources: Sequence[Source], height: int, width: int) -> Sources:
    """Images and masks in one size; without a mask 0 everywhere. Raises: as `load_image`."""
    black = torch.zeros(1, height, width)
    masks = [
        black if each.mask is None else load_image(each.mask, height, width).mean(0, keepdim=True)
        for each in sources
    ]
    images = [load_image(each.image, height, width) for each in sources]
    return Sources(torch.stack(images), torch.stack(masks))


def read_pixels(picture: Picture) -> np.ndarray:
    """Decoded pixels (H, W, 3), float32 in [0, 1].

    Decodes the whole image, since a truncated one opens without an error. Raises Unreadable with
    the decoder's error.
    """
    if isinstance(picture, Path) and not picture.is_file():
        raise Unreadable("no such file")
    if (len(picture) if isinstance(picture, bytes) else picture.stat().st_size) == 0:
        raise Unreadable("empty file (0 bytes)")
    try:
        with warnings.catch_warnings():  # of Pillow, on files that it reads nevertheless
            warnings.simplefilter("ignore")
            return _decode(picture)
    except Exception as error:  # decoders raise nearly anything on broken files
        reason = str(error).replace("\n", " ") or type(error).__name__
        if isinstance(picture, Path):
            reason = reason.replace(str(picture), picture.name)
        raise Unreadable(f"unreadable ({reason})") from error


def _decode(picture: Picture) -> np.ndarray:
    """First frame, upright, three channels, composited on white: (H, W, 3), float32 in [0, 1]."""
    with Image.open(
        BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS
    ) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode == "F":
            raise ValueError("floating-point pixels of unknown range; save it with 8 or 16 bits")
        if image.mode.startswith("I"):
            if opened.info.get("icc_profile"):
                warn_of_profile("a profile on a picture of 16 bits")
            return _from_16_bit(np.asarray(image))
        return np.asarray(upright_srgb(opened), dtype=np.float32) / 255


def _from_16_bit(grey: np.ndarray) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(
            f"grey values from {grey.min()} to {grey.max()}; save it with 8 or 16 bits"
        )
    return np.repeat((grey / np.float32(65535)).astype(np.float32)[:, :, None], 3, axis=2)


def _centre_crop(image: Float[Tensor, "3 H W"], ratio: float) -> Float[Tensor, "3 H2 W2"]:
    """The largest centred part whose height / width is `ratio`, to the nearest pixel."""
    h, w = image.shape[1:]
    new_h, new_w = min(h, max(1, round(w * ratio))), min(w, max(1, round(h / ratio)))
    top, left = (h - new_h) // 2, (w - new_w) // 2
    return image[:, top : top + new_h, left : left + new_w]
