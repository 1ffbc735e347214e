"""Floating-point operations of a run, counted where its memory is: on tensors without data.

Each product and sum counts, in matrix products, convolutions and attention, with the formulas of
torch's FlopCounterMode. A device reaches a part of its nominal rate: a time made of this is an
estimate.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .. import config
from ..evaluation.in_training import OBEYED_SAMPLES, obeyed_phrases, references_of
from ..training.data import accumulation

PARTS = ("encode", "rollout", "train", "decode", "reward")
"""Of an update: prompts through the text encoders; network calls without gradient, and real images
through the VAE; network calls with gradient, forward and backward; the VAE decoder and the rewards,
forward and backward."""
PCIE = 20.0
"""10^9 bytes a second from pinned main memory over PCIe 4.0 x16, of 32 nominal."""


@dataclass(frozen=True)
class Work:
    """FLOPs of one batch of an update by part, the mean over the updates of a rollout, and of one
    image that is sampled and measured. `copied`: bytes of swapped blocks that the batch copies."""

    batch: Mapping[str, float]
    image: float
    copied: float = 0.0


@dataclass(frozen=True)
class Cost:
    """FLOPs on one rank: of one update by part, of all updates, and of all measurements.

    `copied`: bytes of swapped blocks that an update copies to the device.
    """

    parts: Mapping[str, float]
    training: float
    measuring: float
    copied: float = 0.0

    @property
    def update(self) -> float:
        return sum(self.parts.values())

    def hours(self, teraflops: float, pcie: float = PCIE) -> tuple[float, float]:
        """Hours of 100 updates, and of the whole run, at this rate of each GPU.

        Blocks are copied at `pcie` 10^9 bytes a second while the denoiser computes: what takes
        longer counts.
        """
        rate, denoiser = teraflops * 1e12 * 3600, self.parts["rollout"] + self.parts["train"]
        copying = self.copied / (pcie * 1e9) * teraflops * 1e12
        slower = max(1.0, copying / denoiser) if self.copied else 1.0
        update = self.update + (slower - 1) * denoiser
        whole = self.training * update / self.update + slower * self.measuring
        return 100 * update / rate, whole / rate


def cost_of(run: config.RunConfig, work: Work, ranks: int) -> Cost:
    """The cost of a run whose updates and measurements do this work."""
    parts = {part: accumulation(run, ranks) * flops for part, flops in work.batch.items()}
    settings, steps = run.evaluate, run.train.num_steps
    between = (steps - 1) // settings.every if settings.every else 0
    images = 2 * settings.num_samples + between * settings.num_samples_during
    images += settings.num_samples * sum(bool(each.phrase) for each in references_of(run))
    if obeyed_phrases(run):
        images += 2 * min(OBEYED_SAMPLES, settings.num_samples)
    training, copied = steps * sum(parts.values()), accumulation(run, ranks) * work.copied
    return Cost(parts, training, work.image * images / ranks, copied)
