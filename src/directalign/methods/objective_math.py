"""From scores to the loss of one branch, from several rewards to one, and velocity-space KL.

`score` is a reward model's raw output, `reward` is what is maximised. `k_pos` and `k_neg` are
additive ramps inside the reward; `discount` is a factor on the loss. The mixture is ours; gradient
balancing follows GradNorm (arXiv 1711.02257) without its learning rates: gradient norms are
equalised, so weights keep their meaning. Last, statistics of scores and rewards over updates and
processes, which checkpoints hold.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..device import to_device, to_like, widest
from ..diffusion.path import shift_sigmas
from ..interfaces import SINGLE_PROCESS, ProcessGroup
from ..types import Images, Latents, PerSample

Members = Float[Tensor, "m b"]
PerMember = Float[Tensor, " m"]
Ramp = PerSample | float
"""An additive weight inside the reward, of each image or of all."""
EPSILON = 1e-12
"""Under the root of a variance: the derivative stays finite where all members agree."""


def relative_reward(pos: PerSample, neg: PerSample, k_pos: Ramp, k_neg: Ramp) -> PerSample:
    """(1 + k_pos)·pos − (1 + k_neg)·neg, the semantic relative preference of arXiv 2509.06942.

    `pos` and `neg` are scores of one image under the prompt with a desired and an undesired control
    phrase.
    """
    return (1 + _like(k_pos, pos)) * pos - (1 + _like(k_neg, neg)) * neg


def anchored_reward(
    pos: PerSample, neg: PerSample, plain: PerSample, reference: Tensor | float, tolerance: float
) -> PerSample:
    """(pos − neg) − (plain − reference)² / (2·tolerance): the absolute score is held at its start.

    `plain` is the score under the unchanged prompt, `reference` its value before training,
    `tolerance` > 0 the deviation, in score units, at which the penalty's slope equals that of the
    relative term.
    """
    return (pos - neg) - (plain - _like(reference, plain)) ** 2 / (2 * tolerance)


def above_ceiling(
    pos: PerSample, neg: PerSample, k_pos: Ramp, k_neg: Ramp, ceiling: float
) -> PerSample:
    """nu·relu(pos − neg − ceiling), nu the weight of the relative term.

    Subtracted from a reward it replaces pos − neg by min(pos − neg, ceiling), whose loss is
    relu(ceiling − (pos − neg)) up to a constant.
    """
    _, nu = absolute_relative(_like(k_pos, pos), _like(k_neg, neg))
    return nu * torch.relu(pos - neg - ceiling)


def hinge(reward: PerSample, direction: PerSample | float, margin: float | None) -> PerSample:
    """Loss per sample: relu(margin − direction·reward), or −direction·reward without a margin."""
    signed = _like(direction, reward) * reward
    return -signed if margin is None else torch.relu(margin - signed)


def similarity_weight(to_j: PerSample, to_0: PerSample, floor: float | None) -> Tensor:
    """Larger for leaps close to the path, at most 1 / (2·floor); 1 for all without a `floor`."""
    if floor is None:
        return torch.ones_like(to_j)
    return 1 / (to_j.clamp(min=floor) + to_0.clamp(min=floor))


def discount(position: PerSample, shift: float) -> PerSample:
    """Factor on the loss at position p in [0, 1]: shift·p / (1 + (shift − 1)·p)."""
    return shift_sigmas(position, shift)


def absolute_relative(
    k_pos: Tensor | float, k_neg: Tensor | float
) -> tuple[Tensor | float, Tensor | float]:
    """(mu, nu) with relative_reward = mu·(pos + neg)/2 + nu·(pos − neg); mu weighs the absolute."""
    return k_pos - k_neg, 1 + (k_pos + k_neg) / 2


def from_absolute_relative(
    mu: Tensor | float, nu: Tensor | float
) -> tuple[Tensor | float, Tensor | float]:
    """(k_pos, k_neg) of an absolute and a relative weight: the inverse of `absolute_relative`."""
    return nu - 1 + mu / 2, nu - 1 - mu / 2


def mixed_reward(
    rewards: Members, means: PerMember, weights: PerMember, disagreement_weight: float
) -> PerSample:
    """Σ weight·reward − disagreement_weight·disagreement.

    `rewards` are in common units (divided by their own spread) and `means` are theirs. A member of
    negative weight counts with its sign reversed in the disagreement.
    """
    total = (weights[:, None] * rewards).sum(0)
    if disagreement_weight == 0:
        return total
    centred = weights.sign()[:, None] * (rewards - means[:, None])
    std = (centred.var(0, correction=0) + EPSILON).sqrt()  # over members, of each image
    return total - disagreement_weight * std


def balanced_gradient(
    gradients: Float[Tensor, "m b 3 H W"], slopes: Members, norms: PerMember, scales: PerMember
) -> Images:
    """Σ slope·factor·gradient/scale; the factors give all members the mean norm/scale.

    Args:
        gradients: of each member's reward with respect to the image.
        slopes: of the mixed reward with respect to each member's reward/scale.
        norms: running norm of each member's gradients; 0 leaves a member unchanged.
        scales: divisors of the members' rewards.
    """
    common = norms / scales
    factors = torch.where(norms > 0, common.mean() / common, torch.ones_like(common))
    return torch.einsum("mb,mbchw->bchw", slopes * (factors / scales)[:, None], gradients)


def with_gradient(value: PerSample, gradient: Images, images: Images) -> PerSample:
    """`value`, with `gradient` as its gradient with respect to `images`."""
    line = (images * gradient).sum((1, 2, 3))
    return value.detach() + (line - line.detach())


def velocity_kl(pred: Latents, base: Latents) -> PerSample:
    """Velocity-space KL: (pred − base)² as the mean over dimensions.

    `base` is the base model's prediction at the same x_t and noise level. Predictions are compared
    because recovered images differ by gain²·distance, and the gain belongs to the sampled jump.
    docs/method.md, section 6, derives what the number bounds.
    """
    return ((pred - base) ** 2).mean((1, 2, 3))


def _like(value: Tensor | float, score: PerSample) -> Tensor:
    """A number or float64 numbers, in the dtype and on the device of the scores."""
    return to_like(value, score) if isinstance(value, Tensor) else score.new_full((), value)


DECAY = 0.95
"""Weight of older updates in running statistics, per update: a window of about twenty updates."""
MIN_RELATIVE_STD = 1e-6
"""Part of the mean below which a standard deviation is rounding error: the values are constant."""


class Reference:
    """Mean plain score over the first `updates` and all processes: that of the base model."""

    def __init__(self, updates: int) -> None:
        self.updates = updates
        self.total: Tensor | float = 0.0
        self.count: Tensor | int = 0

    def update(self, plain: PerSample, step: int, group: ProcessGroup = SINGLE_PROCESS) -> None:
        if step < self.updates:
            own = plain.detach().to(widest(plain.device)).sum()
            total, seen = group.sum(torch.stack([own, torch.full_like(own, len(plain))]))
            self.total, self.count = self.total + total, self.count + seen

    @property
    def value(self) -> Float[Tensor, ""]:
        return self.total / torch.as_tensor(self.count).clamp(min=1)


class RunningStats:
    """Exponentially weighted mean and std of `size` kinds of values, over images and processes.

    Keeps count, sum and sum of squares in float64, on the device of the values. An update uses what
    was recorded in the updates before it, so the result does not depend on how it is split into
    branches, accumulated batches and processes. Only the first update uses its own values so far.
    """

    def __init__(self, size: int) -> None:
        self.before = torch.zeros(3, size, dtype=torch.float64)
        self.current, self.step = torch.zeros_like(self.before), -1

    def update(self, values: Members, step: int, group: ProcessGroup = SINGLE_PROCESS) -> None:
        """Add values (m, b) of update `step`; every process must call this equally often."""
        if step != self.step:
            self.before = DECAY * (self.before + self.current)
            self.current, self.step = torch.zeros_like(self.current), step
        new = values.detach().to(widest(values.device))
        sums = torch.stack([torch.ones_like(new).sum(1), new.sum(1), new.square().sum(1)])
        self.before = to_device(self.before, new.device)
        self.current = to_device(self.current, new.device) + group.sum(sums)

    @property
    def means(self) -> PerMember:
        count, total, _ = self._used
        return total / count

    @property
    def stds(self) -> PerMember:
        """Standard deviation over images; 1 where all values are alike, as a divisor."""
        means = self.means
        std = (self._used[2] / self._used[0] - means.square()).clamp(min=0).sqrt()
        return torch.where(std > MIN_RELATIVE_STD * means.abs(), std, torch.ones_like(std))

    @property
    def rms(self) -> PerMember:
        """Root mean square."""
        return (self._used[2] / self._used[0]).sqrt()

    @property
    def _used(self) -> Tensor:
        return torch.where((self.before[0] > 0).all(), self.before, self.current)

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "current": self.current, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.before, self.current, self.step = state["before"], state["current"], state["step"]
