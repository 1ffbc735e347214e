"""From the rewards of several judges to one, and from their gradients in the image to one.

Rewards here are in common units already (divided by their own spreads): m members, b images. Ours; the balance is the idea of
GradNorm (arXiv 1711.02257) without its learning rates: norms are made equal, and weights mean what they say.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Images, PerSample

Members = Float[Tensor, "m b"]
PerMember = Float[Tensor, " m"]
ROUND = 1e-12
"""Under the root of the spread: its slope is finite, and zero, where all agree."""


def disagreement(centred: Members) -> PerSample:
    """Standard deviation over the members, image by image, of rewards counted from each member's own mean."""
    return (centred.var(0, correction=0) + ROUND).sqrt()


def mixed_reward(units: Members, means: PerMember, weights: PerMember, weight_of_disagreement: float) -> PerSample:
    """Σ weight·reward − weight_of_disagreement·disagreement; `means` are those of `units`. A member of negative weight agrees by being low."""
    total = (weights[:, None] * units).sum(0)
    if weight_of_disagreement == 0:
        return total
    return total - weight_of_disagreement * disagreement(weights.sign()[:, None] * (units - means[:, None]))


def balanced_gradient(gradients: Float[Tensor, "m b 3 H W"], slopes: Members, norms: PerMember, scales: PerMember) -> Images:
    """Σ slope·factor·gradient/scale, where the factors give all members one norm: the mean of norm/scale.

    Args:
        gradients: of each member's own reward with respect to the image.
        slopes: of the mixed reward with respect to each member's reward/scale.
        norms: running norm of each member's gradients; a member that has had none (0) is left as it is.
        scales: what each member's reward is divided by.
    """
    common = norms / scales
    factors = torch.where(norms > 0, common.mean() / common, torch.ones_like(common))
    return torch.einsum("mb,mbchw->bchw", slopes * (factors / scales)[:, None], gradients)


def carrying(value: PerSample, gradient: Images, images: Images) -> PerSample:
    """`value` as it is, with `gradient` as its gradient with respect to `images`."""
    line = (images * gradient).sum((1, 2, 3))
    return value.detach() + (line - line.detach())
