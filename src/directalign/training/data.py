"""The batches of each step, online or offline, as a pure function of the step.

All batches of a step have one image size: that of a bucket, or one of `rollout.sizes`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import config
from ..data.buckets import Bucket, check_buckets, fill_buckets
from ..data.edits import scan_edits
from ..data.image_dataset import ImageSet, ImageStream, scan_images
from ..data.image_io import Source
from ..data.pairs import scan_pairs
from ..data.prompts import PromptStream, read_prompts
from ..data.shuffle import turn
from ..diffusion.sampling import image_size
from ..interfaces import Model
from ..types import Batch, DirectAlignError
from .distributed import TorchProcessGroup


@dataclass(frozen=True)
class TrainData:
    """Real images, or pairs of images, for all steps or the first `data.offline_steps`, and prompts
    or edits after them.

    Two of `prompts`, `images` and `edits` may be None.
    """

    run: config.RunConfig
    group: TorchProcessGroup
    prompts: PromptStream | None
    images: ImageStream | None
    edits: ImageStream | None = None
    """Prompts with their sources."""

    def batches(self, step: int) -> list[Batch]:
        """This rank's batches of step `step` (0 is the first), whose gradients are accumulated."""
        count = accumulation(self.run, self.group.size)
        return [self._batch(step, micro) for micro in range(count)]

    def first_texts(self, count: int) -> Sequence[str]:
        """The first `count` prompts (or captions) of the data, for sample grids."""
        if self.prompts is not None:
            return self.prompts.prompts[:count]
        assert self._rows is not None
        return self._rows.captions[:count]

    def first_sources(self, count: int) -> Sequence[Source]:
        """What the first `count` prompts edit; empty without edits."""
        if self.edits is None:
            return ()
        return [self.edits.images.source(i) for i in range(min(count, len(self.edits.images)))]

    def texts(self, step: int) -> tuple[str, ...]:
        """The prompts or captions of step `step` on all ranks, without reading images."""
        offline, total = self._offline(step), global_batch_size(self.run, self.group)
        if offline is not None:
            return offline.captions(step, total)
        number, _ = self._rollout(step)
        if self.edits is not None:
            return self.edits.captions(number, total)
        assert self.prompts is not None
        return self.prompts.batch(number, total)

    @property
    def skipped(self) -> Sequence[str]:
        """Images that cannot be used, with the reason."""
        return self._rows.skipped if self._rows is not None else ()

    @property
    def _rows(self) -> ImageSet | None:
        """The images, pairs or edits."""
        stream = self.images or self.edits
        return None if stream is None else stream.images

    @property
    def fingerprint(self) -> str:
        """Depends on all prompts, captions and image names, and their order."""
        names, captions = (), ()
        if self._rows is not None:
            names, captions = self._rows.names, self._rows.captions
        prompts = self.prompts.prompts if self.prompts is not None else ()
        text = "\n".join([*prompts, "", *names, "", *captions])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _batch(self, step: int, micro: int) -> Batch:
        size, seed = self.run.data.batch_size, self.run.seed
        total = global_batch_size(self.run, self.group)
        offset = (micro * self.group.size + self.group.rank) * size
        offline, (number, made) = self._offline(step), self._rollout(step)
        kept = kept_phrases(self.run.method, number, total)
        rows = tuple(each is not None for each in kept)
        if offline is not None:
            captions, images = offline.batch(step, size, offset, total)
            captions = _with_phrases(captions, kept[offset:])
            more: dict[str, Any] = {"rejected": offline.rejected(step, size, offset, total)}
            more |= {"sources": offline.sources(step, size, offset, total)}
            return Batch(
                step, captions, images, seed, offset, total, offline.size(step), rows, **more
            )
        if self.edits is not None:
            place = number, size, offset, total
            prompts = _with_phrases(self.edits.captions(*place), kept[offset:])
            more = {"rollout": made, "sources": self.edits.sources(*place)}
            shape = self.edits.size(number)
            return Batch(step, prompts, None, seed, offset, total, shape, rows, **more)
        assert self.prompts is not None
        prompts, sizes = self.prompts.batch(number, size, offset, total), self.run.rollout.sizes
        image_size = None
        if sizes is not None:  # each size equally often
            image_size = sizes[turn((1,) * len(sizes), seed, number, "sizes")[0]]
        prompts = _with_phrases(prompts, kept[offset:])
        return Batch(step, prompts, None, seed, offset, total, image_size, rows, rollout=made)

    def _rollout(self, step: int) -> tuple[int, int]:
        """Of step `step`: what its prompts are counted by, which is the step itself unless
        rollouts are reused, and the step that makes its rollout."""
        reuse, first = self.run.rollout.reuse, self.run.data.offline_steps or 0
        if self._offline(step) is not None:
            return step, step
        number, later = divmod(step - first, reuse)
        return first + number, step - later

    def _offline(self, step: int) -> ImageStream | None:
        """The images if step `step` trains on them."""
        last = self.run.data.offline_steps
        return self.images if last is None or step < last else None


def kept_phrases(method: Any, step: int, total: int) -> list[str | None]:
    """The negative phrase of each of the `total` prompts of a step, None for those with a reward;
    empty without `method.keep_every`. The kept ones and their phrases take turns over the rollouts
    of the run."""
    every = getattr(method, "keep_every", None)
    if every is None:
        return []
    step //= getattr(method, "updates_per_rollout", 1)
    phrases = method.control_phrases.negative
    places = range(step * total + 1, (step + 1) * total + 1)
    return [None if n % every else phrases[n // every % len(phrases)] for n in places]


def _with_phrases(prompts: Sequence[str], phrases: Sequence[str | None]) -> tuple[str, ...]:
    """The prompts, each with its phrase; without phrases, or with None, as they are."""
    given = [*phrases, *[None] * len(prompts)]
    pairs = zip(prompts, given, strict=False)
    return tuple(text if phrase is None else f"{phrase}. {text}" for text, phrase in pairs)


def updates_per_rollout(run: config.RunConfig) -> int:
    """Updates that train on one rollout."""
    return max(run.rollout.reuse, getattr(run.method, "updates_per_rollout", 1))


def accumulation(run: config.RunConfig, ranks: int) -> int:
    """Batches per step on each rank, from `gradient_accumulation_steps` or `global_batch_size`.

    Raises: DirectAlignError if `global_batch_size` is not a multiple of the batch on all ranks.
    """
    wanted, batch_size = run.train.global_batch_size, run.data.batch_size * ranks
    if wanted is None:
        return run.train.gradient_accumulation_steps
    if wanted % batch_size:
        raise DirectAlignError(
            f"train.global_batch_size: {wanted} is not a multiple of data.batch_size "
            f"{run.data.batch_size} on {ranks} ranks ({batch_size}); change one of them"
        )
    return wanted // batch_size


def global_batch_size(run: config.RunConfig, group: TorchProcessGroup) -> int:
    """Prompts per step over all ranks and accumulated batches."""
    return accumulation(run, group.size) * group.size * run.data.batch_size


def scanned(data: config.DataConfig) -> ImageSet | None:
    """The images, pairs or edits of `data`, each decoded once; None for prompts alone."""
    if data.edits is not None:
        return scan_edits(data.edits, data.edit_targets, data.strict)
    if data.pairs is not None:
        return scan_pairs(data.pairs, data.strict)
    return scan_images(data.images, data.strict) if data.images is not None else None


def open_data(run: config.RunConfig, model: Model, group: TorchProcessGroup) -> TrainData:
    """Read and check the prompt list, the image set and the image sizes of a run.

    Raises: DirectAlignError for an unreadable file, a size that the model does not support, or a
    bucket with fewer images than a step takes.
    """
    for key, sizes in (("data.buckets", run.data.buckets), ("rollout.sizes", run.rollout.sizes)):
        for height, width in sizes or ():
            try:
                model.latent_shape(height, width)
            except DirectAlignError as error:
                raise DirectAlignError(f"{key}: [{height}, {width}]: {error}") from error
    prompts = images = None
    every = getattr(run.method, "keep_every", None)
    if every is not None and global_batch_size(run, group) == 1:
        raise DirectAlignError(
            f"method.keep_every: {every} and one prompt per update, which then would have no "
            "reward: raise data.batch_size or train.gradient_accumulation_steps, or remove it"
        )
    if run.data.prompts is not None:
        prompts = PromptStream(read_prompts(run.data.prompts), run.seed)
    found = scanned(run.data)
    if found is not None:
        if run.data.buckets is None:
            buckets = (Bucket(image_size(model, run.rollout), tuple(range(len(found)))),)
        else:
            buckets = fill_buckets(found.sizes, run.data.buckets)
            check_buckets(buckets, global_batch_size(run, group))
        images = ImageStream(found, buckets, run.seed)
    edits = images if run.data.edits is not None else None
    offline = images if edits is None or run.data.edit_targets else None
    return TrainData(run, group, prompts, offline, edits)
