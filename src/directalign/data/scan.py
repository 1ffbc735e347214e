"""The scan of an image set: every image is decoded once, before training, and each that cannot be used is named.

What is kept is small: name, caption and size of the good ones, and a way to read each again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from ..types import DirectAlignError
from .candidates import Candidates, Entry
from .dataset import in_dataset
from .folder import in_folder
from .hf_datasets import is_address
from .image_io import Picture, Unreadable, load_image, read_pixels


@dataclass(frozen=True)
class ImageSet:
    """What a scan found: usable images in the order of their source, and what was left out and why.

    `names` are paths in the folder `where`, or row numbers of the dataset `where`; `sizes` are (height, width) in pixels.
    """

    where: str
    names: tuple[str, ...]
    captions: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    picture: Callable[[int], Picture]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int, height: int, width: int) -> Float[Tensor, "3 H W"]:
        """The index-th image, fitted to the shape asked for (`pixels.load_image`)."""
        return load_image(self.picture(index), height, width, f"{self.where}: {self.names[index]}")


def scan_images(source: str | Path, strict: bool = False) -> ImageSet:
    """Decode every image of a folder or of a dataset (`hf:...`) once and pair it with its caption.

    Raises:
        DirectAlignError: no such folder or dataset, no usable image in it, a caption that is not a valid prompt, or, with
            `strict`, the first image that is unreadable, truncated, empty or without a caption.
    """
    found = in_dataset(str(source)) if is_address(source) else in_folder(Path(source))
    kept: list[tuple[int, Entry, tuple[int, int]]] = []
    skipped: list[str] = []
    for index, (entry, size) in enumerate(_measured(found)):
        if isinstance(size, tuple):
            kept.append((index, entry, size))
        elif strict:
            raise DirectAlignError(f"{found.where}: {entry.name}: {size}; mend or remove it, or set data.strict: false to skip such images")
        else:
            skipped.append(f"{entry.name}: {size}")
    if not kept:
        reason = f"all {len(skipped)} were skipped, first {skipped[0]}" if skipped else found.hint
        raise DirectAlignError(f"{found.where}: no usable image: {reason}")
    places, entries, sizes = zip(*kept, strict=True)
    names, captions = tuple(entry.name for entry in entries), tuple(entry.caption for entry in entries)
    return ImageSet(found.where, names, captions, sizes, lambda i: found.picture(places[i]), tuple(skipped))


def _measured(found: Candidates) -> Iterator[tuple[Entry, tuple[int, int] | str]]:
    """Each entry with its (height, width), or with why it cannot be used."""
    for index, entry in enumerate(found.entries):
        if entry.fault is not None:
            yield entry, entry.fault
            continue
        try:
            height, width, _ = read_pixels(found.picture(index)).shape
        except Unreadable as error:
            yield entry, str(error)
        else:
            yield entry, (height, width)
