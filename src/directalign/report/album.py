"""Pictures that stand in the page itself: read only from inside the folder, reduced together until all of them fit."""

from __future__ import annotations

from .files import inside
import base64
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from PIL import Image


PIXEL_ART, MAX_EDGE = 128, 384
"""Images up to the first size are kept to the pixel; larger ones are reduced to the second, or further, until a page stays below 5 MB."""
EDGES = (MAX_EDGE, 288, 216, 160, 112, 72, 48)
BUDGET = 3_400_000
"""Letters that all pictures of a page may take; text and charts have the rest of its 5 MB."""
FORMATS = ("PNG", "JPEG", "WEBP")
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises on a file that is no image, a broken one, or one that unpacks to far too much."""


@dataclass(frozen=True)
class Album:
    """Data URIs by file name; `pixelated` where the originals are small enough to be shown pixel by pixel."""

    pictures: dict[str, str]
    pixelated: bool

    def __contains__(self, name: str) -> bool:
        return name in self.pictures

    def __getitem__(self, name: str) -> str:
        return self.pictures[name]


def album(folder: Path, names: Sequence[str], notes: list[str], budget: int = BUDGET) -> Album:
    """The named files of a folder, as often as they are named counting towards the budget; those that cannot be shown become notes."""
    times = Counter(names)
    opened = {name: image for name in times if (image := _opened(folder, name, notes)) is not None}
    pixelated = bool(opened) and all(max(image.size) <= PIXEL_ART for image in opened.values())
    encoded = fitted(list(opened.values()), budget, [times[name] for name in opened])
    return Album(dict(zip(opened, encoded, strict=True)), pixelated)


def fitted(
    images: Sequence[Image.Image], budget: int = BUDGET, times: Sequence[int] = ()
) -> list[str]:
    """Data URIs of all images at the largest common size at which they fit; each is written `times` over (once by default)."""
    found: list[str] = []
    for edge in EDGES:
        found, spent = [], 0
        for image, count in zip(images, times or [1] * len(images), strict=True):
            found.append(data_uri(image, edge))
            spent += len(found[-1]) * count
            if spent > budget and edge != EDGES[-1]:
                break
        else:
            return found
    return found


def data_uri(image: Image.Image, edge: int = MAX_EDGE) -> str:
    """The image as a data URI, at most `edge` pixels long: WebP, lossless when it is small and need not shrink further."""
    small = max(image.size) <= PIXEL_ART and edge == MAX_EDGE
    if max(image.size) > edge:
        image = image.copy()
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="WEBP", lossless=small, quality=60 if small else 80, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def read_image(file: Path) -> Image.Image:
    """A picture in RGB. Raises one of `UNREADABLE`."""
    if not file.is_file():
        raise FileNotFoundError(2, "No such file", str(file))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as opened:
            return opened.convert("RGB")


def _opened(folder: Path, name: str, notes: list[str]) -> Image.Image | None:
    """A picture no larger than the page can use."""
    file = inside(folder, name)
    if file is None:
        notes.append(f"{name}: leads out of the folder, not shown.")
        return None
    try:
        image = read_image(file)
    except UNREADABLE as error:
        notes.append(f"{name}: not readable as an image ({type(error).__name__}), left out.")
        return None
    image.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
    return image
