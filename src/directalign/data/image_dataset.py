"""Real images with captions, for offline training.

`scan_images` decodes every image of a folder or a Hugging Face dataset once, so that a broken one
is reported before training starts; it stores captions and sizes, not pixels. `ImageStream` serves
them in aspect-ratio buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import DirectAlignError, Images
from .buckets import Bucket
from .hf_datasets import is_address
from .image_io import Picture, Unreadable, load_image, read_pixels
from .image_sources import Entry, ImageSource, in_dataset, in_folder
from .shuffle import indices, turn


@dataclass(frozen=True)
class ImageSet:
    """The usable images of a source in its order, and what was skipped and why.

    `names` are paths in the folder `where`, or rows of the dataset `where`; `sizes` are (height,
    width) in pixels.
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
        """The index-th image in this size (see `image_io.load_image`)."""
        return load_image(self.picture(index), height, width, f"{self.where}: {self.names[index]}")


def scan_images(source: str | Path, strict: bool = False) -> ImageSet:
    """Decode every image of a folder or a dataset (`hf:...`) once and pair it with its caption.

    Raises:
        DirectAlignError: no such folder or dataset, no usable image in it, an invalid caption, or,
            with `strict`, the first image that is unreadable, truncated, empty or uncaptioned.
    """
    found = in_dataset(str(source)) if is_address(source) else in_folder(Path(source))
    usable: list[tuple[int, Entry, tuple[int, int]]] = []
    skipped: list[str] = []
    for index, (entry, size) in enumerate(_measured(found)):
        if isinstance(size, tuple):
            usable.append((index, entry, size))
        elif strict:
            raise DirectAlignError(
                f"{found.where}: {entry.name}: {size}; repair or remove it, or set data.strict: "
                "false to skip such images"
            )
        else:
            skipped.append(f"{entry.name}: {size}")
    if not usable:
        reason = f"all {len(skipped)} were skipped, first {skipped[0]}" if skipped else found.hint
        raise DirectAlignError(f"{found.where}: no usable image: {reason}")
    return ImageSet(
        found.where,
        tuple(entry.name for _, entry, _ in usable),
        tuple(entry.caption for _, entry, _ in usable),
        tuple(size for *_, size in usable),
        lambda i: found.picture(usable[i][0]),
        tuple(skipped),
    )


def _measured(found: ImageSource) -> Iterator[tuple[Entry, tuple[int, int] | str]]:
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
    """Endless seeded order over images, without state: a batch depends on the arguments only."""

    images: ImageSet
    buckets: tuple[Bucket, ...]
    """At least one, none empty."""
    seed: int

    def batch(
        self, step: int, size: int = 1, offset: int = 0, global_size: int | None = None
    ) -> tuple[tuple[str, ...], Images]:
        """(captions, images (size, 3, height, width) in [0, 1]) of update `step`.

        They are items `offset` to `offset + size - 1` of the update's `global_size` (default size).
        """
        chosen, shape = self._indices(step, size, offset, global_size), self.size(step)
        captions = tuple(self.images.captions[i] for i in chosen)
        return captions, torch.stack([self.images.image(i, *shape) for i in chosen])

    def captions(
        self, step: int, size: int = 1, offset: int = 0, global_size: int | None = None
    ) -> tuple[str, ...]:
        """The captions of the same batch; reads no image."""
        return tuple(
            self.images.captions[i] for i in self._indices(step, size, offset, global_size)
        )

    def size(self, step: int) -> tuple[int, int]:
        """(height, width) of the images of update `step`."""
        return self._turn(step)[0].size

    def _indices(self, step: int, size: int, offset: int, global_size: int | None) -> list[int]:
        bucket, earlier = self._turn(step)
        first = earlier * (size if global_size is None else global_size) + offset
        return [bucket.members[i] for i in indices(len(bucket.members), self.seed, first, size)]

    def _turn(self, step: int) -> tuple[Bucket, int]:
        """The bucket of update `step`, and the number of earlier updates with the same bucket."""
        weights = tuple(len(bucket.members) for bucket in self.buckets)
        choice, earlier = turn(weights, self.seed, step, "buckets")
        return self.buckets[choice], earlier
