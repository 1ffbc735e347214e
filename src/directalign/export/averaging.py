"""The mean of several sets of trained weights, and a step back from it toward the base model: tensors in, tensors out.

Whole weights are averaged in float64 (arXiv 2203.05482) and mixed with the base's (WiSE-FT, arXiv 2109.01903). Of a LoRA it is the
update up · down that is averaged: averaging up and down apart would leave out how the two move together. Factors side by side
are that mean exactly, at the sum of their ranks; `reduced` brings it down to a rank, with the error that it makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .low_rank import LowRank


def mean_weight(tuned: Sequence[Tensor], base: Tensor, base_share: float) -> Tensor:
    """(1 − base_share)·mean(tuned) + base_share·base, summed in float64 and rounded once to the dtype of `base`; all of one shape."""
    mean = sum((each.double() for each in tuned[1:]), tuned[0].double()) / len(tuned)
    return torch.lerp(mean, base.double(), base_share).to(base)


def mean_update(tuned: Sequence[LowRank], base_share: float) -> LowRank:
    """The update (1 − base_share)·mean(up · down), exactly: first factors stacked, second ones side by side, so ranks add up."""
    share = (1 - base_share) / len(tuned)
    return LowRank(torch.cat([each.down for each in tuned]), share * torch.cat([each.up for each in tuned], dim=1))


def reduced(update: LowRank, rank: int) -> tuple[LowRank, float]:
    """The update of this rank that is nearest in the Frobenius norm, and its distance over the norm of the whole; 0 for one that is 0.

    The product is never formed: with up = Q·R and downᵀ = P·S, the singular values of up · down are those of the small R · Sᵀ.
    Each factor takes the root of them. A rank that the update does not exceed leaves it as it is.
    """
    if rank >= update.rank:
        return update, 0.0
    left, above = torch.linalg.qr(update.up.double().flatten(1))
    right, below = torch.linalg.qr(update.down.double().flatten(1).T)
    u, values, vh = torch.linalg.svd(above @ below.T, full_matrices=False)
    roots = values[:rank].sqrt()
    up, down = left @ u[:, :rank] * roots, roots[:, None] * (vh[:rank] @ right.T)
    whole = float(values.norm())
    nearest = LowRank(down.reshape(rank, *update.down.shape[1:]).to(update.down), up.reshape(len(up), rank, *update.up.shape[2:]).to(update.up))
    return nearest, float(values[rank:].norm()) / whole if whole else 0.0
