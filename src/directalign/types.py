"""Data passed between the parts of a training: frozen dataclasses; array types.

Conventions of the package: `sigma` is the coefficient of the noise (0 clean, 1 pure noise), `alpha`
that of the signal; latents are unpacked (b, c, h, w); images are float32 (b, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import SAVED as SAVED
from .errors import DirectAlignError as DirectAlignError
from .errors import NonFiniteError as NonFiniteError

Latents = Float[Tensor, "b c h w"]
Images = Float[Tensor, "b 3 H W"]
Masks = Float[Tensor, "b 1 H W"]
PerSample = Float[Tensor, " b"]

Metrics = Mapping[str, float | Float[Tensor, ""]]
"""Numbers by name; tensors stay on their device until a step brings them to the host."""

PathName = Literal["flow", "vp"]
PredictionName = Literal["velocity", "epsilon", "v"]


@dataclass(frozen=True)
class Sources:
    """The images that prompts edit, in [0, 1], and `masks`: 1 where an edit may change the image, 0
    where it must not, which is everywhere without a mask."""

    images: Images
    masks: Masks

    def __getitem__(self, rows: slice) -> Sources:
        return Sources(self.images[rows], self.masks[rows])

    def repeated(self, times: int) -> Sources:
        """Each `times` times, as neighbours."""
        return Sources(*(e.repeat_interleave(times, 0) for e in (self.images, self.masks)))

    def to(self, device: torch.device | str) -> Sources:
        return Sources(self.images.to(device), self.masks.to(device))


@dataclass(frozen=True)
class Conditioning:
    """The network's inputs besides x_t and sigma.

    `tensors` are the model's embeddings of the prompts, each (b, ...). `unconditional` has the same
    keys for the empty prompt and is needed only if `cfg_scale` is not 1 (two passes).
    `embedded_guidance` is an input of guidance-distilled networks, None for the others. `sources`
    are the images that the prompts edit, None where they make images from nothing.
    `truncate_timestep` n: the network gets int(n·sigma)/n instead of sigma (`sampling.predict`).
    """

    prompts: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    unconditional: Mapping[str, Tensor] | None = None
    embedded_guidance: float | None = None
    cfg_scale: float = 1.0
    truncate_timestep: int | None = None
    detach_negative: bool = False
    """No gradient through the unconditional pass of classifier-free guidance."""
    sources: Images | None = None

    def guided(
        self, embedded: float | None, cfg_scale: float, truncate: int | None = None
    ) -> Conditioning:
        """The same prompts, called with other settings."""
        settings = {"cfg_scale": cfg_scale, "truncate_timestep": truncate}
        return replace(self, embedded_guidance=embedded, **settings)

    def rows(self, rows: Sequence[int]) -> Conditioning:
        """That of the prompts at `rows`, each as often as it is named."""
        at = list(rows)
        tensors, unconditional = (
            each and {name: tensor[at] for name, tensor in each.items()}
            for each in (self.tensors, self.unconditional)
        )
        sources = None if self.sources is None else self.sources[at]
        prompts = tuple(self.prompts[row] for row in at)
        own = {"tensors": tensors, "unconditional": unconditional, "sources": sources}
        return replace(self, prompts=prompts, **own)


@dataclass(frozen=True)
class Noised:
    """x_t = alpha(sigma)·x0 + sigma·noise, and its terms."""

    x_t: Latents
    x0: Latents
    noise: Latents
    sigma: PerSample


@dataclass(frozen=True)
class Recovered:
    """Direct-Align's latents `x0 + gain·(target − pred)`, with gradient through `pred` only.

    `residual` is target − pred, detached, for recovery error by noise level.
    """

    x0: Latents
    gain: PerSample
    residual: Latents


@dataclass(frozen=True)
class Batch:
    """The data of one rank for one forward pass of an optimizer step.

    `images` are real images in [0, 1] for offline training, None for online rollouts. Random draws
    are made from (seed, step) for the update's global batch, over all ranks and accumulated
    batches; this batch takes the rows from `offset`, of `global_size` (None: it is the whole). So a
    resumed run draws the same numbers as an uninterrupted one, with any number of processes.
    `image_size` is (height, width) in pixels, None for the recipe's.
    """

    step: int
    prompts: tuple[str, ...]
    images: Images | None = None
    seed: int = 0
    offset: int = 0
    global_size: int | None = None
    image_size: tuple[int, int] | None = None
    kept: tuple[bool, ...] = ()
    """Of each row of the *global* batch, whether it trains without reward, by the base alone; empty
    if none does."""
    rejected: Images | None = None
    """With pairs: the image that each of `images` was preferred to."""
    rollout: int | None = None
    """The update whose weights and draws make this batch's rollout; None: its own."""
    sources: Sources | None = None
    """With edits: the image that each of `prompts` edits, in the size of the batch."""

    @property
    def source_images(self) -> Images | None:
        """The images of `sources`."""
        return None if self.sources is None else self.sources.images

    @property
    def own_kept(self) -> tuple[bool, ...]:
        """`kept` of the rows of this batch."""
        return self.kept[self.offset : self.offset + len(self.prompts)]

    def repeated(self, times: int) -> Batch:
        """Every prompt of the global batch `times` times, as neighbours; for online rollouts."""
        size = len(self.prompts) if self.global_size is None else self.global_size
        return replace(
            self,
            prompts=tuple(prompt for prompt in self.prompts for _ in range(times)),
            kept=tuple(kept for kept in self.kept for _ in range(times)),
            sources=self.sources and self.sources.repeated(times),
            offset=self.offset * times,
            global_size=size * times,
        )


@dataclass(frozen=True)
class LossTerm:
    """One branch's contribution to a step: `value` is a scalar with its graph, the rest is logged.

    `metrics` are means over the batch. `levels` have one value per sample, {"sigma", "gain",
    "reward", "recovery_error", ...}, for curves by noise level. Their tensors are detached by the
    step and read at its end, so making a loss never waits for the device. `branch` names the branch
    in errors.
    """

    value: Float[Tensor, ""]
    branch: str
    metrics: Metrics = field(default_factory=dict)
    levels: Mapping[str, list[float] | PerSample] = field(default_factory=dict)
