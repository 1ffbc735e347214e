"""The batches of each step, online or offline, as a pure function of the step: a resume needs nothing but the step.

Every batch of a step has one shape: that of an image bucket, or one of the recipe's rollout sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from .. import config
from ..data.buckets import Bucket, check_buckets, fill_buckets
from ..data.image_dataset import ImageStream, scan_images
from ..data.prompts import PromptStream, read_prompts
from ..data.shuffle import turn
from ..interfaces import Model
from ..types import Batch, DirectAlignError
from .distributed import TorchProcessGroup


@dataclass(frozen=True)
class TrainData:
    """Deals out real images, for all updates or the first `data.offline_steps`, and prompts after them; one of the two may lack."""

    run: config.RunConfig
    ranks: TorchProcessGroup
    prompts: PromptStream | None
    images: ImageStream | None

    def batches(self, step: int) -> list[Batch]:
        """The batches of this rank that are accumulated into update `step` (0 is the first)."""
        return [
            self._batch(step, micro) for micro in range(accumulation(self.run, self.ranks.size))
        ]

    def shown(self, count: int) -> Sequence[str]:
        """The first `count` prompts of the data, for sample grids."""
        return self._texts[:count]

    def texts(self, step: int) -> tuple[str, ...]:
        """The prompts or captions of update `step` on all ranks; no image is read."""
        offline, total = self._offline(step), self._total
        if offline is not None:
            return offline.captions(step, total)
        assert self.prompts is not None
        return self.prompts.batch(step, total)

    @property
    def skipped(self) -> Sequence[str]:
        """Images that cannot be used, with the reason."""
        return self.images.images.skipped if self.images is not None else ()

    @property
    def fingerprint(self) -> str:
        """Changes when a prompt, caption or image name does, or their order."""
        names = self.images.images.names if self.images is not None else ()
        captions = self.images.images.captions if self.images is not None else ()
        lines = [
            *(self.prompts.prompts if self.prompts is not None else ()),
            "",
            *names,
            "",
            *captions,
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @property
    def _texts(self) -> Sequence[str]:
        if self.prompts is not None:
            return self.prompts.prompts
        assert self.images is not None
        return self.images.images.captions

    def _batch(self, step: int, micro: int) -> Batch:
        size = self.run.data.batch_size
        place = (micro * self.ranks.size + self.ranks.rank) * size
        offline, total = self._offline(step), self._total
        if offline is not None:
            captions, images = offline.batch(step, size, place, total)
            return Batch(step, captions, images, self.run.seed, place, total, offline.size(step))
        assert self.prompts is not None
        return Batch(
            step,
            self.prompts.batch(step, size, place, total),
            None,
            self.run.seed,
            place,
            total,
            self._rollout_size(step),
        )

    @property
    def _total(self) -> int:
        """Prompts per update, all ranks and accumulated batches together."""
        return accumulation(self.run, self.ranks.size) * self.ranks.size * self.run.data.batch_size

    def _offline(self, step: int) -> ImageStream | None:
        """The images, while they are what is trained on."""
        last = self.run.data.offline_steps
        return self.images if last is None or step < last else None

    def _rollout_size(self, step: int) -> tuple[int, int] | None:
        """The size that all samples of update `step` have; each of `rollout.sizes` comes up equally often."""
        sizes = self.run.rollout.sizes
        return (
            None
            if sizes is None
            else sizes[turn((1,) * len(sizes), self.run.seed, step, "sizes")[0]]
        )


def accumulation(run: config.RunConfig, ranks: int) -> int:
    """Batches per update on each rank: `train.gradient_accumulation_steps`, or what makes up `train.global_batch_size`.

    Raises DirectAlignError when that is not a multiple of `data.batch_size` on all ranks.
    """
    wanted, together = run.train.global_batch_size, run.data.batch_size * ranks
    if wanted is None:
        return run.train.gradient_accumulation_steps
    if wanted % together:
        raise DirectAlignError(
            f"train.global_batch_size: {wanted} is not a multiple of data.batch_size {run.data.batch_size} on {ranks} ranks ({together}); change one of them"
        )
    return wanted // together


def open_data(run: config.RunConfig, model: Model, ranks: TorchProcessGroup) -> TrainData:
    """Read and check the prompt list and the image set that a run names, and the sizes that its images will have."""
    for key, sizes in (("data.buckets", run.data.buckets), ("rollout.sizes", run.rollout.sizes)):
        for height, width in sizes or ():
            _check_size(model, key, height, width)
    prompts = (
        PromptStream(read_prompts(run.data.prompts), run.seed)
        if run.data.prompts is not None
        else None
    )
    images = (
        _open_images(run, run.data.images, model, ranks) if run.data.images is not None else None
    )
    return TrainData(run, ranks, prompts, images)


def _open_images(
    run: config.RunConfig, source: str, model: Model, ranks: TorchProcessGroup
) -> ImageStream:
    found = scan_images(source, run.data.strict)
    if run.data.buckets is None:
        size = (
            run.rollout.height or model.default_size[0],
            run.rollout.width or model.default_size[1],
        )
        return ImageStream(found, (Bucket(size, tuple(range(len(found)))),), run.seed)
    buckets = fill_buckets(found.sizes, run.data.buckets)
    check_buckets(buckets, accumulation(run, ranks.size) * ranks.size * run.data.batch_size)
    return ImageStream(found, buckets, run.seed)


def _check_size(model: Model, key: str, height: int, width: int) -> None:
    try:
        model.latent_shape(height, width)
    except DirectAlignError as error:
        raise DirectAlignError(f"{key}: [{height}, {width}]: {error}") from error
