"""What travels along the arrow: small frozen dataclasses, no behaviour beyond reading their own fields.

Conventions of the whole package: `sigma` is the coefficient of the noise (0 clean, 1 pure noise), `alpha` that of the
signal; latents are unpacked (b, c, h, w); images are float32 (b, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "b c h w"]
Images = Float[Tensor, "b 3 H W"]
PerSample = Float[Tensor, " b"]

PathName = Literal["flow", "vp"]
PredictionName = Literal["velocity", "epsilon", "v", "x0"]


class DirectAlignError(ValueError):
    """A mistake the user can mend: one line that names the file or key, the value received, and the remedy."""


class NonFiniteError(DirectAlignError):
    """A loss, gradient or weight that is not finite: the step is not taken."""


@dataclass(frozen=True)
class Conditioning:
    """What the network is told besides x_t and sigma.

    `tensors` holds whatever the family's network takes, each (b, ...). `unconditional` holds the same keys for the
    empty prompt and is needed only where `cfg_scale` differs from 1 (two passes). `embedded_guidance` is a number fed
    to guidance-distilled networks, None for the others.
    """

    prompts: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    unconditional: Mapping[str, Tensor] | None = None
    embedded_guidance: float | None = None
    cfg_scale: float = 1.0

    def guided(self, embedded_guidance: float | None, cfg_scale: float) -> Conditioning:
        """The same prompts under other guidance."""
        return replace(self, embedded_guidance=embedded_guidance, cfg_scale=cfg_scale)


@dataclass(frozen=True)
class Noised:
    """x_t = alpha(sigma)·x0 + sigma·noise, with everything that made it."""

    x_t: Latents
    x0: Latents
    noise: Latents
    sigma: PerSample


@dataclass(frozen=True)
class Recovered:
    """Direct-Align's image `x0 + gain·(target − pred)`, gradient through `pred` alone.

    `residual` is target − pred (pred − target where the network predicts x0, so that a positive gain always denoises),
    detached, for the records of recovery error by noise level.
    """

    x0: Latents
    gain: PerSample
    residual: Latents


@dataclass(frozen=True)
class Scores:
    """Raw answers of a reward model about one batch of images; only what the form of the reward asks for is there."""

    pos: PerSample | None = None
    neg: PerSample | None = None
    plain: PerSample | None = None


@dataclass(frozen=True)
class Batch:
    """One optimiser step's share of the data on one rank.

    `images` are real images in [0, 1] for offline training, None for online rollouts. Every random draw of a step is made
    from (seed, step) for the update's whole global batch, all ranks and accumulated batches together; this batch takes the
    rows from `offset` on, of `global_size` (None: it is the whole). So a resumed run draws what the undisturbed one would have
    drawn, however many processes it goes on with. `image_size` is (height, width) in pixels, None for the recipe's.
    """

    step: int
    prompts: tuple[str, ...]
    images: Images | None = None
    seed: int = 0
    offset: int = 0
    global_size: int | None = None
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class LossTerm:
    """One branch's contribution to a step: `value` is a scalar with its graph, the rest is for the records.

    `metrics` are plain floats (means over the batch). `levels` are per-sample records {"sigma", "gain", "reward",
    "recovery_error", ...} as equally long lists, for curves by noise level. `branch` names the branch in errors.
    """

    value: Float[Tensor, ""]
    branch: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, list[float]] = field(default_factory=dict)
