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
from ..training.distributed import TorchProcessGroup, is_sharded_run, shards_of

PARTS = ("encode", "rollout", "train", "decode", "reward")
"""Of an update: prompts through the text encoders; network calls without gradient, and real images
through the VAE; network calls with gradient, forward and backward; the VAE decoder and the rewards,
forward and backward."""
PCIE = 20.0
"""10^9 bytes a second from pinned main memory over PCIe 4.0 x16, of 32 nominal."""
WITHIN, BETWEEN = 350.0, 320.0
"""10^9 bytes a second into a GPU over NVLink 4, of 450 nominal; into a node with eight cards of 400
Gbit/s, of 400."""
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Work:
    """FLOPs of one batch of an update by part, the mean over the updates of a rollout, and of one
    image that is sampled and measured.

    `copied`: bytes of swapped blocks that the batch copies. `forward`, `backward`: passes of the
    denoiser for the batch; `weights`: bytes that a pass reads of it; `trained`: numbers trained.
    """

    batch: Mapping[str, float]
    image: float
    copied: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    weights: int = 0
    trained: int = 0


@dataclass(frozen=True)
class Cost:
    """FLOPs on one rank: of one update by part, of all updates, and of all measurements.

    `copied`: bytes of swapped blocks that an update copies to the device. `within`, `between`:
    bytes that come into a GPU, and into a node from others, for an update; while the denoiser
    computes if it is `sharded`.
    """

    parts: Mapping[str, float]
    training: float
    measuring: float
    copied: float = 0.0
    within: float = 0.0
    between: float = 0.0
    sharded: bool = False

    @property
    def update(self) -> float:
        return sum(self.parts.values())

    def receiving(self, within: float = WITHIN, between: float = BETWEEN) -> float:
        """Seconds of an update at 10^9 bytes a second into a GPU, and into a node, at once."""
        return max(self.within / (within * 1e9), self.between / (between * 1e9))

    def hours(
        self, teraflops: float, pcie: float = PCIE, within: float = WITHIN, between: float = BETWEEN
    ) -> tuple[float, float]:
        """Hours of 100 updates, and of the whole run, at this rate of each GPU.

        Blocks are copied at `pcie` 10^9 bytes a second, and gathered from other ranks at `within`
        and `between`, while the denoiser computes: what takes longest counts. Averages of gradients
        of a network that is not sharded come after it.
        """
        rate, denoiser = teraflops * 1e12, self.parts["rollout"] + self.parts["train"]
        copying, receiving = self.copied / (pcie * 1e9), self.receiving(within, between)
        beside = max(copying, receiving if self.sharded else 0.0) * rate
        slower = max(1.0, beside / denoiser) if beside else 1.0
        after = 0.0 if self.sharded else receiving * rate
        update = self.update + (slower - 1) * denoiser + after
        whole = self.training * update / self.update + slower * self.measuring
        return 100 * update / (3600 * rate), whole / (3600 * rate)


def cost_of(run: config.RunConfig, work: Work, group: TorchProcessGroup) -> Cost:
    """The cost of a run whose updates and measurements do this work."""
    ranks = group.size
    parts = {part: accumulation(run, ranks) * flops for part, flops in work.batch.items()}
    settings, steps = run.evaluate, run.train.num_steps
    between = (steps - 1) // settings.every if settings.every else 0
    images = 2 * settings.num_samples + between * settings.num_samples_during
    images += settings.num_samples * sum(bool(each.phrase) for each in references_of(run))
    if obeyed_phrases(run):
        images += 2 * min(OBEYED_SAMPLES, settings.num_samples)
    training, copied = steps * sum(parts.values()), accumulation(run, ranks) * work.copied
    received, sharded = received_of(run, work, group), is_sharded_run(run, group)
    return Cost(parts, training, work.image * images / ranks, copied, *received, sharded)


def received_of(run: config.RunConfig, work: Work, group: TorchProcessGroup) -> tuple[float, float]:
    """Bytes that come into a GPU, and into a node from others, for an update by rings of ranks.

    Split over n ranks, a GPU gets (n - 1) / n of: the weights for each pass, forward and backward,
    and the sum of the gradients of each backward pass. A mean of gradients over n copies, summed
    and then spread, is twice (n - 1) / n of them. A ring that goes through several nodes brings the
    same into each.
    """
    sharded, ranks = is_sharded_run(run, group), group.size
    several = ranks > (group.per_node or ranks)
    dtype = run.model.trained_dtype if run.model.tune == "full" and not sharded else "float32"
    gradients = BYTES[dtype] * work.trained
    if not sharded:
        received = 2 * (ranks - 1) / ranks * gradients
        return received, received if several else 0.0
    shards, batches = shards_of(run, group), accumulation(run, ranks)
    gathered = (work.forward + work.backward) * work.weights
    split = batches * (shards - 1) / shards * (gathered + work.backward * gradients)
    if shards == ranks:
        return split, split if several else 0.0
    copies = ranks // shards
    return split, batches * work.backward * 2 * (copies - 1) / copies * gradients
