"""The batches of each update, online or offline, as a pure function of the step: no reader, no worker, nothing to save but the step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import config
from ..images import ImageStream, scan_images
from ..interfaces import Family
from ..prompts import PromptStream, read_prompts
from ..types import Batch, DirectAlignError
from .distributed import Ranks


@dataclass(frozen=True)
class Feed:
    """Deals out real images while `offline` says so, prompts afterwards. At least one of the two streams is there."""

    run: config.Run
    ranks: Ranks
    prompts: PromptStream | None
    images: ImageStream | None

    def batches(self, step: int) -> list[Batch]:
        """The batches of this rank that are accumulated into update `step` (0 is the first)."""
        return [self._batch(step, micro) for micro in range(accumulation(self.run, self.ranks.size))]

    def shown(self, count: int) -> Sequence[str]:
        """The first `count` prompts of the data, for sample grids."""
        return self._texts[:count]

    @property
    def skipped(self) -> Sequence[str]:
        """Images that cannot be used, with the reason."""
        return self.images.images.skipped if self.images is not None else ()

    @property
    def fingerprint(self) -> str:
        """Changes when a prompt, caption or image name does, or their order."""
        names = [file.name for file in self.images.images.files] if self.images is not None else []
        captions = self.images.images.captions if self.images is not None else ()
        lines = [*(self.prompts.prompts if self.prompts is not None else ()), "", *names, "", *captions]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @property
    def _texts(self) -> Sequence[str]:
        if self.prompts is not None:
            return self.prompts.prompts
        assert self.images is not None
        return self.images.images.captions

    def _batch(self, step: int, micro: int) -> Batch:
        settings = self.run
        size, parts = settings.data.batch_size, accumulation(settings, self.ranks.size)
        place = {"rank": self.ranks.rank, "world_size": self.ranks.size, "size": size, "micro": micro, "accumulation": parts}
        shared: dict[str, Any] = {"seed": settings.seed, "place": (micro * self.ranks.size + self.ranks.rank) * size, "total": parts * self.ranks.size * size}
        offline = self.images is not None and (settings.data.offline_steps is None or step < settings.data.offline_steps)
        if offline:
            assert self.images is not None
            captions, images = self.images.batch(step, **place)
            return Batch(step, captions, images, **shared)
        assert self.prompts is not None
        return Batch(step, self.prompts.batch(step, **place), **shared)


def accumulation(run: config.Run, ranks: int) -> int:
    """Batches per update on each rank: `train.accumulation`, or what makes up `train.global_batch_size`.

    Raises DirectAlignError when that is not a multiple of `data.batch_size` on all ranks.
    """
    wanted, together = run.train.global_batch_size, run.data.batch_size * ranks
    if wanted is None:
        return run.train.accumulation
    if wanted % together:
        raise DirectAlignError(
            f"train.global_batch_size: {wanted} is not a multiple of data.batch_size {run.data.batch_size} on {ranks} ranks ({together}); change one of them"
        )
    return wanted // together


def open_feed(run: config.Run, family: Family, ranks: Ranks) -> Feed:
    """Read and check the prompt list and the image set that a run names."""
    height, width = run.rollout.height or family.default_size[0], run.rollout.width or family.default_size[1]
    prompts = PromptStream(read_prompts(run.data.prompts), run.seed) if run.data.prompts is not None else None
    images = None
    if run.data.images is not None:
        images = ImageStream(scan_images(run.data.images, run.data.strict), height, width, run.seed)
    return Feed(run, ranks, prompts, images)
