"""From the scores of one image to the loss of one branch.

`score` is a raw answer of the reward model, `reward` what is maximised. `k_pos` and `k_neg` are additive ramps *inside*
the reward, `discount` is a factor on the loss: two things that share a name in other places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import PerSample
from .path import shifted


def relative_reward(pos: PerSample, neg: PerSample, k_pos: PerSample | float, k_neg: PerSample | float) -> PerSample:
    """(1 + k_pos)·pos − (1 + k_neg)·neg, the semantic relative preference of arXiv 2509.06942.

    `pos` and `neg` are scores of one image under the prompt with a desired and an undesired control phrase.
    """
    return (1 + _like(k_pos, pos)) * pos - (1 + _like(k_neg, neg)) * neg


def anchored_reward(pos: PerSample, neg: PerSample, plain: PerSample, reference: PerSample | float, tolerance: float) -> PerSample:
    """(pos − neg) − (plain − reference)² / (2·tolerance): relative, with the absolute score held where it was.

    `plain` is the score under the unchanged prompt, `reference` its value before training, `tolerance` > 0 the
    deviation, in score units, at which the anchor pulls as hard as the relative term.
    """
    return (pos - neg) - (plain - _like(reference, plain)) ** 2 / (2 * tolerance)


def hinge(reward: PerSample, direction: PerSample | float, margin: float | None) -> PerSample:
    """Loss per sample: relu(margin − direction·reward), or −direction·reward when there is no margin."""
    signed = _like(direction, reward) * reward
    return -signed if margin is None else torch.relu(margin - signed)


def discount(position: PerSample, shift: float) -> PerSample:
    """Factor on the loss, larger at high noise: shift·p / (1 + (shift − 1)·p) of the place p in [0, 1] in the window."""
    return shifted(position, shift)


def absolute_relative(k_pos: Tensor | float, k_neg: Tensor | float) -> tuple[Tensor | float, Tensor | float]:
    """(mu, nu) with relative_reward = mu·(pos + neg)/2 + nu·(pos − neg).

    mu = k_pos − k_neg is all that an absolute preference, bias and content alike, gets; nu = 1 + (k_pos + k_neg)/2.
    """
    return k_pos - k_neg, 1 + (k_pos + k_neg) / 2


def from_absolute_relative(mu: Tensor | float, nu: Tensor | float) -> tuple[Tensor | float, Tensor | float]:
    """(k_pos, k_neg) of an absolute and a relative weight: the inverse of `absolute_relative`."""
    return nu - 1 + mu / 2, nu - 1 - mu / 2


def _like(value: PerSample | float, score: PerSample) -> Tensor:
    """A number or float64 numbers, in the type and on the device of the scores."""
    return torch.as_tensor(value, dtype=score.dtype, device=score.device)
