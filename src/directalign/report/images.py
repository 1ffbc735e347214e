"""Images embedded in a page as data URIs, and sample grids cut into their cells.

Only files inside the folder are read. A page that is too large reduces all its images.
"""

import base64
import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ..io.colour import upright_srgb
from .format import cut, listing
from .read import RunFiles, inside

PIXEL_ART, MAX_EDGE = 128, 384
"""Images up to the first size are kept losslessly; larger ones are reduced to the second."""
EDGES = (MAX_EDGE, 288, 216, 160, 112, 72, 48)
BUDGET = 3_400_000
"""Most characters of all images of a page; text and charts have the rest of its 5 MB."""
FORMATS = ("PNG", "JPEG", "WEBP")
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""Exceptions of Pillow for a file that is not an image, broken, or too large when decoded."""
GRID_COLUMNS, GRID_CELLS = 4, 8
"""Layout of a sample grid without samples.json."""
MAX_STEPS, MAX_CELLS = 9, 12

Cells = list[tuple[int, list[Image.Image]]]
"""(step, images of its sample grid)."""
EmbeddedCells = list[tuple[int, list[str]]]
"""(step, data URIs)."""
T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """Data URIs by file name; `pixelated` if all originals are small."""

    uris: Mapping[str, str]
    pixelated: bool


def embed(folder: Path, names: Sequence[str], notes: list[str], budget: int = BUDGET) -> Images:
    """Embed files of a folder; unreadable ones become notes.

    A name that occurs several times counts as often towards the budget.
    """
    counts = Counter(names)
    opened = {name: image for name in counts if (image := _open(folder, name, notes)) is not None}
    pixelated = bool(opened) and all(max(image.size) <= PIXEL_ART for image in opened.values())
    uris = fitted(list(opened.values()), budget, [counts[name] for name in opened])
    return Images(dict(zip(opened, uris, strict=True)), pixelated)


def fitted(
    images: Sequence[Image.Image], budget: int = BUDGET, counts: Sequence[int] = ()
) -> list[str]:
    """Data URIs of all images at the largest common size that fits; each is used `counts` times."""
    found: list[str] = []
    for edge in EDGES:
        found, spent = [], 0
        for image, count in zip(images, counts or [1] * len(images), strict=True):
            found.append(data_uri(image, edge))
            spent += len(found[-1]) * count
            if spent > budget and edge != EDGES[-1]:
                break
        else:
            break
    return found


def data_uri(image: Image.Image, edge: int = MAX_EDGE) -> str:
    """A WebP data URI of at most `edge` pixels per side; lossless for small images."""
    small = max(image.size) <= PIXEL_ART and edge == MAX_EDGE
    if max(image.size) > edge:
        image = image.copy()
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="WEBP", lossless=small, quality=60 if small else 80, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def read_image(file: Path) -> Image.Image:
    """An image in RGB. Raises: one of `UNREADABLE`."""
    if not file.is_file():
        raise FileNotFoundError(2, "No such file", str(file))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as opened:
            return upright_srgb(opened)


def _open(folder: Path, name: str, notes: list[str]) -> Image.Image | None:
    file = inside(folder, name)
    if file is None:
        notes.append(f"{name}: outside of the folder, left out.")
        return None
    try:
        image = read_image(file)
    except UNREADABLE as error:
        notes.append(f"{name}: not readable as an image ({type(error).__name__}), left out.")
        return None
    image.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
    return image


def prompts_of(run: RunFiles) -> list[str]:
    """Prompts of the sample grids, [] if unknown."""
    default = run.setting("train", "sample_prompts", default=[])
    return [cut(prompt) for prompt in listing(run.sample_info.get("prompts") or default)]


def sample_cells(run: RunFiles, most: int = MAX_STEPS, kept: float | None = None) -> Cells:
    """Cells of at most `most` sample grids, with the first, the last and that of step `kept`."""
    chosen = spread(run.samples, most)
    chosen = sorted({*chosen, *(sample for sample in run.samples if sample[0] == kept)})
    found = []
    for step, file in chosen:
        try:
            cells = cut_grid(file, len(prompts_of(run)))
        except UNREADABLE as error:
            reason = type(error).__name__
            run.notes.append(f"samples/{file.name}: not readable as an image ({reason}), left out.")
            continue
        for cell in cells:
            cell.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
        found.append((step, cells))
    return found


def embed_cells(runs: Sequence[Cells], budget: int = BUDGET) -> tuple[list[EmbeddedCells], bool]:
    """Data URIs of the sample grids of all runs of a page, and whether all cells are small."""
    images = [cell for cells in runs for _, row in cells for cell in row]
    uris = iter(fitted(images, budget))
    found = [[(step, [next(uris) for _ in row]) for step, row in cells] for cells in runs]
    return found, all(max(image.size) <= PIXEL_ART for image in images)


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced, with both ends."""
    if len(items) <= most or most <= 1:
        return list(items[:most])
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def cut_grid(file: Path, count: int = 0) -> list[Image.Image]:
    """The images of a sample grid, row by row; `count` 0 assumes the usual layout."""
    grid = read_image(file)
    cells = count or GRID_CELLS
    columns = min(GRID_COLUMNS, cells)
    width, height = grid.width // columns, grid.height // -(-cells // columns)
    if width == 0 or height == 0:
        raise ValueError(f"{file.name}: {grid.width} x {grid.height}: too small for {cells} images")
    corners = [(x, y) for y in range(grid.height // height) for x in range(columns)]
    boxes = [(x * width, y * height, (x + 1) * width, (y + 1) * height) for x, y in corners]
    images = [grid.crop(box) for box in boxes[:cells]]
    while not count and len(images) > 1 and images[-1].getextrema() == ((255, 255),) * 3:
        images.pop()  # white padding
    return images[:MAX_CELLS]
