"""Real images with captions, for offline training: scanned first, so that a broken one is named before training starts.

A set is a folder (`folder`) or a Hugging Face dataset (`dataset`). `scan` decodes every image once and keeps captions and
sizes, never pixels; `buckets` sorts them by aspect ratio; `stream` deals them out; `pixels` decodes and fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import DirectAlignError, Images
from .buckets import Bucket, check_buckets, fill_buckets, suggest_buckets
from .hf_datasets import is_address
from .image_io import Picture, Unreadable, load_image, read_pixels
from .image_sources import Candidates, Entry, in_dataset, in_folder
from .shuffle import indices, turn


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
            raise DirectAlignError(
                f"{found.where}: {entry.name}: {size}; mend or remove it, or set data.strict: false to skip such images"
            )
        else:
            skipped.append(f"{entry.name}: {size}")
    if not kept:
        reason = f"all {len(skipped)} were skipped, first {skipped[0]}" if skipped else found.hint
        raise DirectAlignError(f"{found.where}: no usable image: {reason}")
    places, entries, sizes = zip(*kept, strict=True)
    names, captions = (
        tuple(entry.name for entry in entries),
        tuple(entry.caption for entry in entries),
    )
    return ImageSet(
        found.where, names, captions, sizes, lambda i: found.picture(places[i]), tuple(skipped)
    )


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


@dataclass(frozen=True)
class ImageStream:
    """An endless, seeded order over an image set: the same arguments give the same batch, in any process."""

    images: ImageSet
    buckets: tuple[Bucket, ...]
    """At least one, none empty."""
    seed: int

    def batch(
        self, step: int, size: int = 1, place: int = 0, total: int | None = None
    ) -> tuple[tuple[str, ...], Images]:
        """(captions, images (size, 3, height, width) in [0, 1]): `size` of the `total` of update `step`, from the `place`-th on."""
        chosen, shape = self._chosen(step, size, place, total), self.size(step)
        return self.captions(step, size, place, total), torch.stack(
            [self.images.image(i, *shape) for i in chosen]
        )

    def captions(
        self, step: int, size: int = 1, place: int = 0, total: int | None = None
    ) -> tuple[str, ...]:
        """The captions of the same batch; no image is read."""
        return tuple(self.images.captions[i] for i in self._chosen(step, size, place, total))

    def size(self, step: int) -> tuple[int, int]:
        """(height, width) of the images of update `step`."""
        return self._turn(step)[0].size

    def _chosen(self, step: int, size: int, place: int, total: int | None) -> list[int]:
        bucket, earlier = self._turn(step)
        first = earlier * (size if total is None else total) + place
        return [bucket.members[i] for i in indices(len(bucket.members), self.seed, first, size)]

    def _turn(self, step: int) -> tuple[Bucket, int]:
        """The bucket of update `step`, and how many updates before it took the same."""
        choice, earlier = turn(
            tuple(len(bucket.members) for bucket in self.buckets), self.seed, step, "buckets"
        )
        return self.buckets[choice], earlier


__all__ = [
    "Bucket",
    "ImageSet",
    "ImageStream",
    "check_buckets",
    "fill_buckets",
    "load_image",
    "scan_images",
    "suggest_buckets",
]
