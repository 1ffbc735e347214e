"""Sample grids cut into single images, small enough to stand in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .collect import RunFiles

COLUMNS, CELLS = 4, 8
"""The layout of a sample grid where samples.json does not say."""
MAX_STEPS, MAX_CELLS = 9, 12
PIXEL_ART, MAX_EDGE = 128, 384
"""Images up to the first size are kept to the pixel; larger ones are reduced to the second, so that a page stays below 5 MB."""


def prompts_of(run: RunFiles) -> list[str]:
    """The prompts of the sample grids, as far as the folder tells."""
    told = run.sample_info.get("prompts") or run.setting("train", "sample_prompts", default=[])
    return [str(prompt) for prompt in told] if isinstance(told, list) else []


def film(run: RunFiles, most: int = MAX_STEPS) -> list[tuple[int, list[str]]]:
    """(step, data URIs of its cells) of some of the run's grids, first and last among them; unreadable ones become a note."""
    frames = []
    for step, file in spread(run.samples, most):
        try:
            frames.append((step, [data_uri(cell) for cell in cells(file, len(prompts_of(run)))]))
        except OSError as error:
            run.notes.append(f"samples/{file.name}: not readable as an image ({type(error).__name__}), left out.")
    return frames


def spread(items: Sequence[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """At most `most` of the items, evenly spaced, both ends kept."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def cells(file: Path, count: int = 0) -> list[Image.Image]:
    """The images of a grid, row by row, without the white ones that fill it up; `count` 0 takes the usual layout."""
    with Image.open(file) as opened:
        grid = opened.convert("RGB")
    number = count or CELLS
    columns = min(COLUMNS, number)
    width, height = grid.width // columns, grid.height // -(-number // columns)
    boxes = [(x * width, y * height, (x + 1) * width, (y + 1) * height) for y in range(grid.height // height) for x in range(columns)]
    images = [grid.crop(box) for box in boxes[:number]]
    while len(images) > 1 and images[-1].getextrema() == ((255, 255),) * 3:
        images.pop()
    return images[:MAX_CELLS]


def data_uri(image: Image.Image) -> str:
    """The image as a data URI: WebP, lossless when it is small."""
    small = max(image.size) <= PIXEL_ART
    if not small:
        image = image.copy()
        image.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="WEBP", lossless=small, quality=60 if small else 80, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
