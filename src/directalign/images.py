"""Real images with captions, for offline training: scanned first, so that a broken file is named before training starts.

A set is a folder of images, each with a `.txt` of the same name, or with one `metadata.jsonl` of rows
{"file_name": ..., "prompt" | "caption" | "text": ...}. Images arrive as float32 (3, H, W) in [0, 1], upright and on white.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from .order import indices
from .texts import checked_prompt, json_rows, prompt_of_row, read_text
from .types import DirectAlignError, Images

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".heic", ".avif", ".jxl"}
"""Files taken for images; those that cannot be decoded (.heic, say) are reported, never passed over in silence."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


@dataclass(frozen=True)
class ImageSet:
    """What a scan found: readable images with their captions in name order, and what was left out and why."""

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class ImageStream:
    """An endless, seeded order over an image set without state: the same arguments give the same batch."""

    images: ImageSet
    height: int
    width: int
    seed: int

    def batch(self, step: int, rank: int = 0, world_size: int = 1, size: int = 1, micro: int = 0, accumulation: int = 1) -> tuple[tuple[str, ...], Images]:
        """(captions, images (size, 3, height, width) in [0, 1]) of micro-batch `micro` (of `accumulation`) at update `step`."""
        places = indices(len(self.images), self.seed, step=step, rank=rank, world_size=world_size, size=size, micro=micro, accumulation=accumulation)
        captions = tuple(self.images.captions[i] for i in places)
        return captions, torch.stack([load_image(self.images.files[i], self.height, self.width) for i in places])


def scan_images(folder: str | Path, strict: bool = False) -> ImageSet:
    """Decode every image of the set once and pair it with its caption.

    Raises:
        DirectAlignError: no such folder, no usable image in it, a caption that is not a valid prompt, or, with `strict`,
            the first image that is unreadable, truncated, empty or without a caption.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DirectAlignError(f"{folder}: no such image folder; check data.images")
    files, captions, skipped = [], [], []
    for file, caption, fault in _pairs(folder):
        fault = fault or _why_unreadable(file)
        if fault and strict:
            raise DirectAlignError(f"{file}: {fault}; mend or remove it, or set data.strict: false to skip such images")
        if fault:
            skipped.append(f"{file.relative_to(folder)}: {fault}")
        else:
            files.append(file)
            captions.append(caption)
    if not files:
        found = f"all {len(skipped)} were skipped, first {skipped[0]}" if skipped else f"none ends in {', '.join(sorted(ENDINGS))}"
        raise DirectAlignError(f"{folder}: no usable image: {found}")
    return ImageSet(tuple(files), tuple(captions), tuple(skipped))


def load_image(file: Path, height: int, width: int) -> Float[Tensor, "3 H W"]:
    """One image, centre-cropped to the shape asked for and resized with antialiasing: float32 in [0, 1]."""
    try:
        image = torch.from_numpy(_pixels(file)).permute(2, 0, 1)
    except _Unreadable as error:
        raise DirectAlignError(f"{file}: {error}; the image was readable when the set was scanned: restore it") from error
    cropped = _centre_crop(image, height / width)
    resized = F.interpolate(cropped[None], (height, width), mode="bicubic", align_corners=False, antialias=True)
    return resized[0].clamp(0, 1)


class _Unreadable(Exception):
    """Why a file cannot be used as an image."""


def _why_unreadable(file: Path) -> str | None:
    """Decodes the file whole, since a truncated image opens without complaint."""
    try:
        _pixels(file)
    except _Unreadable as error:
        return str(error)
    return None


def _pixels(file: Path) -> np.ndarray:
    """Decoded pixels (H, W, 3), float32 in [0, 1]; whatever a decoder raises becomes the reason of `_Unreadable`."""
    if not file.is_file():
        raise _Unreadable("no such file")
    if file.stat().st_size == 0:
        raise _Unreadable("empty file (0 bytes)")
    try:
        return _decode(file)
    except Exception as error:  # decoders raise nearly anything on broken files
        reason = str(error).replace(str(file), file.name).replace("\n", " ") or type(error).__name__
        raise _Unreadable(f"unreadable ({reason})") from error


def _decode(file: Path) -> np.ndarray:
    """First frame, upright, three channels, composited on white: (H, W, 3), float32 in [0, 1]."""
    with Image.open(file, formats=_FORMATS) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode == "F":
            raise ValueError("floating-point pixels of unknown range; save it with 8 or 16 bits")
        if image.mode.startswith("I"):
            return _from_16_bit(np.asarray(image))
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def _from_16_bit(grey: np.ndarray) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"grey values from {grey.min()} to {grey.max()}; save it with 8 or 16 bits")
    return np.repeat((grey / np.float32(65535)).astype(np.float32)[:, :, None], 3, axis=2)


def _centre_crop(image: Float[Tensor, "3 H W"], ratio: float) -> Float[Tensor, "3 H2 W2"]:
    """The largest centred part whose height / width is `ratio`, to the nearest pixel."""
    h, w = image.shape[1:]
    new_h, new_w = min(h, max(1, round(w * ratio))), min(w, max(1, round(h / ratio)))
    top, left = (h - new_h) // 2, (w - new_w) // 2
    return image[:, top : top + new_h, left : left + new_w]


# --- captions: each source yields (image file, caption, why the pair cannot be used or None) -------------------------


def _pairs(folder: Path) -> Iterator[tuple[Path, str, str | None]]:
    metadata = folder / "metadata.jsonl"
    yield from _listed(folder, metadata) if metadata.exists() else _beside(folder)


def _beside(folder: Path) -> Iterator[tuple[Path, str, str | None]]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in ENDINGS or file.name.startswith("."):
            continue
        text = file.with_suffix(".txt")
        if text.is_file():
            yield _captioned(file, read_text(text, "caption file"), str(text))
        else:
            yield file, "", f"no caption: {text.name} is missing"


def _listed(folder: Path, metadata: Path) -> Iterator[tuple[Path, str, str | None]]:
    for line, row in json_rows(metadata, "metadata file"):
        where = f"{metadata}:{line}"
        name = row.get("file_name")
        if not isinstance(name, str):
            raise DirectAlignError(f"{where}: file_name is {name!r:.60}, and the name of an image in {folder} is needed")
        yield _captioned(folder / name, prompt_of_row(row, where), where)


def _captioned(file: Path, text: str, where: str) -> tuple[Path, str, str | None]:
    caption = checked_prompt(text, where)
    return file, caption, None if caption else f"no caption: {Path(where).name} is blank"
