"""The sample grids before and after training as one image: what people look at first."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..report.read import RunFiles

MARGIN = 24
"""Pixels of the strip above each grid that says what it is."""


def before_and_after(records: RunFiles) -> Image.Image | None:
    """The first grid above the last one, each under its name; None where a run has fewer than two."""
    if len(records.samples) < 2:
        return None
    (first, before), (last, after) = records.samples[0], records.samples[-1]
    return _stacked([(_title(first), before), (_title(last), after)])


def _title(step: int) -> str:
    return "before" if step == 0 else f"after {step} updates"


def _stacked(grids: list[tuple[str, Path]]) -> Image.Image:
    images = []
    for _, file in grids:
        with Image.open(file) as opened:
            images.append(opened.convert("RGB"))
    whole = Image.new("RGB", (max(image.width for image in images), sum(image.height + MARGIN for image in images)), "white")
    pen, top = ImageDraw.Draw(whole), 0
    for (title, _), image in zip(grids, images, strict=True):
        pen.text((MARGIN // 4, top + MARGIN // 4), title, fill="black", font=ImageFont.load_default())
        whole.paste(image, (0, top + MARGIN))
        top += image.height + MARGIN
    return whole
