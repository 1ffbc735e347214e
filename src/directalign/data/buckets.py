"""Aspect-ratio buckets: images of like shape train together, so that little is cut off and every batch has one shape.

Each image goes to the bucket whose aspect ratio is nearest on a logarithmic scale (2:1 is as far from 1:1 as 1:2 is).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt, log

from ..types import DirectAlignError

Size = tuple[int, int]
"""(height, width) in pixels."""

WIDEST = 2
"""Largest ratio of the sides that `suggest_buckets` gives."""


@dataclass(frozen=True)
class Bucket:
    """A shape, and which images of the set are trained in it."""

    size: Size
    members: tuple[int, ...]


def fill_buckets(sizes: Sequence[Size], buckets: Sequence[Size]) -> tuple[Bucket, ...]:
    """Every image, given by its (height, width), in the bucket of nearest aspect ratio; the first listed takes a tie."""
    members: list[list[int]] = [[] for _ in buckets]
    for index, (height, width) in enumerate(sizes):
        apart = [abs(log(height / width) - log(h / w)) for h, w in buckets]
        members[apart.index(min(apart))].append(index)
    return tuple(Bucket(size, tuple(each)) for size, each in zip(buckets, members, strict=True))


def check_buckets(buckets: Sequence[Bucket], total: int) -> None:
    """Refuse buckets with fewer images than the `total` of one update, which would show the same image twice in it.

    Raises:
        DirectAlignError: names each such bucket, its number of images, and the remedy.
    """
    small = [
        f"[{bucket.size[0]}, {bucket.size[1]}] has {len(bucket.members)}"
        for bucket in buckets
        if len(bucket.members) < total
    ]
    if small:
        remedy = "leave them out (their images go to the nearest of the others), lower data.batch_size or train.global_batch_size, or remove data.buckets"
        raise DirectAlignError(
            f"data.buckets: {', '.join(small)} images, and an update takes {total} from one bucket; {remedy}"
        )


def suggest_buckets(pixels: int, multiple: int) -> list[list[int]]:
    """The usual [height, width] list around an area, for data.buckets: sides multiples of `multiple`, at most 2:1, tallest first.

    No bucket holds more than `pixels`, and for each short side the longest long side that fits is taken.
    """
    square = isqrt(pixels) // multiple * multiple
    if square < multiple:
        raise DirectAlignError(
            f"suggest_buckets: no square of {pixels:,} pixels has sides that are multiples of {multiple}; give a larger area"
        )
    tall = []
    for short in range(square, 0, -multiple):
        long = pixels // short // multiple * multiple
        if long > WIDEST * short:
            break
        tall.append([long, short])
    wide = [[short, long] for long, short in tall if long != short]
    return tall[::-1] + wide
