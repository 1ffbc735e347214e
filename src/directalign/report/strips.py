"""Sample grids cut into single images, small enough to stand in the page itself."""

from __future__ import annotations

from .album import BUDGET, MAX_EDGE, PIXEL_ART, UNREADABLE, data_uri, fitted, read_image
from .collect import RunFiles
from .files import listing
from .writing import cut
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar
from PIL import Image


__all__ = [
    "Film",
    "Frames",
    "cells",
    "data_uri",
    "film",
    "frames_of",
    "pixelated",
    "prompts_of",
    "shown",
    "spread",
]
COLUMNS, CELLS = 4, 8
"""The layout of a sample grid where samples.json does not say."""
MAX_STEPS, MAX_CELLS = 9, 12

Frames = list[tuple[int, list[Image.Image]]]
Film = list[tuple[int, list[str]]]
"""(step, data URIs of its cells)."""
T = TypeVar("T")


def prompts_of(run: RunFiles) -> list[str]:
    """The prompts of the sample grids, as far as the folder tells."""
    told = run.sample_info.get("prompts") or run.setting("train", "sample_prompts", default=[])
    return [cut(prompt) for prompt in listing(told)]


def film(run: RunFiles, most: int = MAX_STEPS, kept: float | None = None) -> Film:
    """Some of the run's grids, first and last among them, and that of step `kept`."""
    return shown([frames_of(run, most, kept)])[0]


def frames_of(run: RunFiles, most: int = MAX_STEPS, kept: float | None = None) -> Frames:
    """(step, its cells) of at most `most` grids; unreadable ones become a note."""
    chosen = spread(run.samples, most)
    chosen = sorted({*chosen, *(sample for sample in run.samples if sample[0] == kept)})
    if len(chosen) < len(run.samples):
        run.notes.append(
            f"{len(run.samples) - len(chosen)} of {len(run.samples)} sample grids are left out."
        )
    frames = []
    for step, file in chosen:
        try:
            frames.append((step, [_small(cell) for cell in cells(file, len(prompts_of(run)))]))
        except UNREADABLE as error:
            run.notes.append(
                f"samples/{file.name}: not readable as an image ({type(error).__name__}), left out."
            )
    return frames


def _small(cell: Image.Image) -> Image.Image:
    cell.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
    return cell


def shown(films: Sequence[Frames], budget: int = BUDGET) -> list[Film]:
    """All films of a page as data URIs, reduced together until they fit."""
    images = [cell for frames in films for _, row in frames for cell in row]
    encoded = iter(fitted(images, budget))
    return [[(step, [next(encoded) for _ in row]) for step, row in frames] for frames in films]


def pixelated(films: Sequence[Frames]) -> bool:
    """Whether the images are small enough to be shown pixel by pixel."""
    return all(max(cell.size) <= PIXEL_ART for frames in films for _, row in frames for cell in row)


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced, both ends kept."""
    if len(items) <= most:
        return list(items)
    return (
        [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
        if most > 1
        else list(items[:most])
    )


def cells(file: Path, count: int = 0) -> list[Image.Image]:
    """The images of a grid, row by row, without the white ones that fill it up; `count` 0 takes the usual layout."""
    grid = read_image(file)
    number = count or CELLS
    columns = min(COLUMNS, number)
    width, height = grid.width // columns, grid.height // -(-number // columns)
    if width == 0 or height == 0:
        raise ValueError(
            f"{file.name}: {grid.width} x {grid.height} pixels do not hold {number} images"
        )
    boxes = [
        (x * width, y * height, (x + 1) * width, (y + 1) * height)
        for y in range(grid.height // height)
        for x in range(columns)
    ]
    images = [grid.crop(box) for box in boxes[:number]]
    while not count and len(images) > 1 and images[-1].getextrema() == ((255, 255),) * 3:
        images.pop()
    return images[:MAX_CELLS]
