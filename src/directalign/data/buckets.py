"""Aspect-ratio buckets: each batch has images of similar shape, so crops are small.

Each image goes to the bucket of nearest aspect ratio on a logarithmic scale (2:1 is as far from 1:1
as 1:2 is). Every batch has one shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt, log

from ..types import DirectAlignError

Size = tuple[int, int]
"""(height, width) in pixels."""

MAX_RATIO = 2
"""Largest ratio of the sides that `suggest_buckets` returns."""


@dataclass(frozen=True)
class Bucket:
    """A shape, and the indices of the images that are trained in it."""

    size: Size
    members: tuple[int, ...]


def fill_buckets(sizes: Sequence[Size], buckets: Sequence[Size]) -> tuple[Bucket, ...]:
    """Sort images, given by their sizes, into buckets; the first listed bucket wins a tie."""
    members: list[list[int]] = [[] for _ in buckets]
    for index, (height, width) in enumerate(sizes):
        distances = [abs(log(height / width) - log(h / w)) for h, w in buckets]
        members[distances.index(min(distances))].append(index)
    return tuple(Bucket(size, tuple(each)) for size, each in zip(buckets, members, strict=True))


def check_buckets(buckets: Sequence[Bucket], global_size: int) -> None:
    """Raise DirectAlignError for buckets with fewer images than the `global_size` of an update.

    Such a bucket would repeat an image within one update.
    """
    small = [
        f"[{bucket.size[0]}, {bucket.size[1]}] has {len(bucket.members)}"
        for bucket in buckets
        if len(bucket.members) < global_size
    ]
    if small:
        raise DirectAlignError(
            f"data.buckets: {', '.join(small)} images, and an update takes {global_size} from one "
            "bucket; remove them (their images go to the nearest of the others), lower "
            "data.batch_size or train.global_batch_size, or remove data.buckets"
        )


def suggest_buckets(pixels: int, multiple: int) -> list[list[int]]:
    """The usual [height, width] list for data.buckets around an area, tallest first.

    Sides are multiples of `multiple`, ratios at most 2:1, areas at most `pixels`; each short side
    has the longest long side that fits.
    """
    square = isqrt(pixels) // multiple * multiple
    if square < multiple:
        raise DirectAlignError(
            f"suggest_buckets: no square of {pixels:,} pixels has sides that are multiples of "
            f"{multiple}; give a larger area"
        )
    tall = []
    for short in range(square, 0, -multiple):
        long = pixels // short // multiple * multiple
        if long > MAX_RATIO * short:
            break
        tall.append([long, short])
    return tall[::-1] + [[short, long] for long, short in tall if long != short]
