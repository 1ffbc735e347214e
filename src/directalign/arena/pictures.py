"""An image as the browser gets it: decoded and written anew as PNG, so that no name, EXIF, text or format of its file tells who made it.

The images of an item are shown at one size, the smallest among them. Left out: colour profiles, which generators do not write.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from .records import ArenaError
from .sources import Item

Size = tuple[int, int]
"""Width and height in pixels."""

HELD_BYTES = 256 * 2**20
_ASPECT = 0.01
"""Share by which the proportions of an item's images may differ."""
_UNREADABLE = (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError)


def shown_size(item: Item) -> Size:
    """The size at which all images of the item are shown. Raises: ArenaError for an unreadable file, or for proportions that would give a model away."""
    sizes = {file: _size(file) for file in item.files.values()}
    smallest = min(sizes.values(), key=lambda size: size[0] * size[1])
    for file, (width, height) in sizes.items():
        if abs(width * smallest[1] / (height * smallest[0]) - 1) > _ASPECT:
            raise ArenaError(f"{file}: is {width} x {height} beside {smallest[0]} x {smallest[1]} of another model; sample all in one shape")
    return smallest


def _size(file: Path) -> Size:
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # orientations that lie on their side
            return (image.height, image.width) if turned else image.size
    except _UNREADABLE as error:
        raise ArenaError(f"{file}: not an image that can be read ({error}); mend or remove it") from None


def as_png(file: Path, size: Size) -> bytes:
    """The pixels of a file alone, upright, at a size, as PNG."""
    try:
        with Image.open(file) as image:
            pixels = ImageOps.exif_transpose(image).convert("RGB")
    except _UNREADABLE as error:
        raise ArenaError(f"{file}: can no longer be read ({error}); copy it back") from None
    if pixels.size != size:
        pixels = pixels.resize(size, Image.Resampling.LANCZOS)
    bare, written = Image.frombytes("RGB", pixels.size, pixels.tobytes()), io.BytesIO()
    bare.save(written, format="PNG", compress_level=4)
    return written.getvalue()


@dataclass(frozen=True)
class Picture:
    """One model's image of an item, and the size at which it is shown."""

    file: Path
    size: Size


class Pictures:
    """Images by opaque token; the ones last asked for are held in memory."""

    def __init__(self, files: Mapping[str, Picture], held_bytes: int = HELD_BYTES) -> None:
        self.files = files
        self.held_bytes = held_bytes
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def png(self, token: str) -> bytes | None:
        """The image, None for a token that names none. Only files known at the start are ever opened."""
        picture = self.files.get(token)
        if picture is None:
            return None
        with self._lock:
            held = self._held.pop(token, None)
        content = held if held is not None else as_png(picture.file, picture.size)
        self._hold(token, content)
        return content

    def _hold(self, token: str, content: bytes) -> None:
        with self._lock:
            self._held[token] = content
            while sum(map(len, self._held.values())) > self.held_bytes:
                self._held.popitem(last=False)
