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
from ..training.distributed import TorchProcessGroup, shards_of

PARTS = ("encode", "rollout", "train", "decode", "reward")
"""Of an update: prompts through the text encoders; network calls without gradient, and real images
through the VAE; network calls with gradient, forward and backward; the VAE decoder and the rewards,
forward and backward."""
PCIE = 20.0
"""10^9 bytes a second from pinned main memory over PCIe 4.0 x16, of 32 nominal."""
WITHIN, BETWEEN = 350.0, 40.0
"""10^9 bytes a second into a GPU: over NVLink 4 from its node, of 450 nominal; over 400 Gbit/s from
other nodes, of 50."""
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
    bytes that the rank gets for an update from its node and from others, while the denoiser
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
        """Seconds of an update in which the rank gets something, at 10^9 bytes a second each."""
        return self.within / (within * 1e9) + self.between / (between * 1e9)

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
    sharded = shards_of(run, group) > 1
    received = received_of(run, work, group)
    return Cost(parts, training, work.image * images / ranks, copied, *received, sharded)


def received_of(run: config.RunConfig, work: Work, group: TorchProcessGroup) -> tuple[float, float]:
    """Bytes that a rank gets for an update from its own node, and from other nodes.

    Sharded over n ranks, (n - 1) / n of: the weights for each pass, forward and backward, and the
    sum of the gradients of each backward pass. A mean over n copies of gradients, summed and then
    spread (ring all-reduce), is twice (n - 1) / n of them.
    """
    shards = shards_of(run, group)
    per_node, copies = group.per_node or group.size, group.size // shards
    dtype = run.model.trained_dtype if run.model.tune == "full" and shards == 1 else "float32"
    gradients = BYTES[dtype] * work.trained / shards
    averaged, split = 2 * (copies - 1) / copies * gradients, 0.0
    if shards > 1:
        batches = accumulation(run, group.size)
        gathered = (work.forward + work.backward) * work.weights / shards
        split = batches * (shards - 1) * (gathered + work.backward * gradients)
        averaged *= batches * work.backward
    within = (split if shards <= per_node else 0.0) + (averaged if group.size <= per_node else 0.0)
    return within, split + averaged - within
