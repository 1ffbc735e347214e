"""An image as the browser gets it: decoded and written anew as PNG, so that no name, EXIF, text or format of its file tells who made it.

The images of an item are shown at one size, the smallest among them. Files come from anywhere: only still images of three formats, of a size
that fits into memory, are decoded, and each once before anyone is asked. Left out: colour profiles, which generators do not write.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
FORMATS = ("PNG", "JPEG", "WEBP")
"""What may stand in a source: Pillow reads many more, some with the help of other programs."""
MOST_PIXELS = 8192 * 8192
_UNREADABLE = (OSError, EOFError, SyntaxError, Image.DecompressionBombError, ValueError)


def shown_size(item: Item) -> Size:
    """The size at which all images of the item are shown. Raises: ArenaError for an unreadable file, or for proportions that would give a model away."""
    sizes = {file: _size(file) for file in item.files.values()}
    smallest = min(sizes.values(), key=lambda size: size[0] * size[1])
    for file, (width, height) in sizes.items():
        if abs(width * smallest[1] / (height * smallest[0]) - 1) > _ASPECT:
            raise ArenaError(f"{file}: is {width} x {height} beside {smallest[0]} x {smallest[1]} of another model; sample all in one shape")
    return smallest


def _size(file: Path) -> Size:
    with still(file) as image:
        image.load()  # whatever is wrong with it shows now, not to an annotator
        turned = image.getexif().get(0x0112, 1) >= 5  # orientations that lie on their side
        return (image.height, image.width) if turned else image.size


@contextmanager
def still(file: Path) -> Iterator[Image.Image]:
    """An open image that is fit to be shown; what goes wrong with it inside the block is named too. Raises: ArenaError."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_fit(file, image)
            yield image
    except ArenaError:
        raise
    except UnidentifiedImageError:
        raise ArenaError(f"{file}: not a {', '.join(FORMATS)} image; save it as PNG") from None
    except _UNREADABLE as error:
        raise ArenaError(f"{file}: not an image that can be read ({error}); mend it, or copy it again") from None


def _check_fit(file: Path, image: Image.Image) -> None:
    """Refuse what would take gigabytes, move, or lose its shades (Pillow clips those of more than 8 bits)."""
    frames = getattr(image, "n_frames", 1)
    if image.width * image.height > MOST_PIXELS:
        raise ArenaError(f"{file}: is {image.width} x {image.height}, and {MOST_PIXELS} pixels are the most that is decoded; make it smaller")
    if frames > 1:
        raise ArenaError(f"{file}: has {frames} frames; save one of them as PNG")
    if image.mode[0] in "IF":
        raise ArenaError(f"{file}: has more than 8 bits in a colour ({image.mode}); save it as PNG with 8")


def as_png(file: Path, size: Size) -> bytes:
    """The pixels of a file alone, upright, at a size, as PNG. Raises: ArenaError where it is not the image any more that it was."""
    with still(file) as image:
        pixels = ImageOps.exif_transpose(image).convert("RGB")
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
