"""Batches of real images, update by update, without state: one bucket an update, all ranks and accumulated batches the same.

Buckets are dealt out in proportion to their numbers of images, and each is read in its own seeded order, epoch after epoch:
every image is seen about equally often, and the step alone says which come next.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..types import Images
from .buckets import Bucket
from .scan import ImageSet
from .shuffle import indices, turn


@dataclass(frozen=True)
class ImageStream:
    """An endless, seeded order over an image set: the same arguments give the same batch, in any process."""

    images: ImageSet
    buckets: tuple[Bucket, ...]
    """At least one, none empty."""
    seed: int

    def batch(self, step: int, size: int = 1, place: int = 0, total: int | None = None) -> tuple[tuple[str, ...], Images]:
        """(captions, images (size, 3, height, width) in [0, 1]): `size` of the `total` of update `step`, from the `place`-th on."""
        chosen, shape = self._chosen(step, size, place, total), self.size(step)
        return self.captions(step, size, place, total), torch.stack([self.images.image(i, *shape) for i in chosen])

    def captions(self, step: int, size: int = 1, place: int = 0, total: int | None = None) -> tuple[str, ...]:
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
        choice, earlier = turn(tuple(len(bucket.members) for bucket in self.buckets), self.seed, step, "buckets")
        return self.buckets[choice], earlier
