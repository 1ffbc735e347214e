"""Who wins how often on the same prompts and seeds, whether that could be chance, and what is left of it when many questions were asked."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from jaxtyping import Float
from torch import Tensor

from .intervals import Interval, Resamples, bootstrap_rate


class Wins(Interval):
    """The share of pairs that the second won, a tie half a win; `p` is of the sign test over prompts."""

    wins: int
    losses: int
    ties: int
    p: float


def wins(a: Float[Tensor, " n"], b: Float[Tensor, " n"], groups: Sequence[Hashable], drawn: Resamples) -> Wins:
    """How often `b` is the larger on the same pair; `groups` names the prompt of each pair, `drawn` are resamples of those.

    The interval is of the bootstrap over prompts. A prompt that was sampled several times votes once in the sign test, for the side that won
    most of its images: counting every image would take likeness within a prompt for evidence.
    """
    signs = (b.double() - a.double()).sign().cpu()
    counts = [int((signs == side).sum()) for side in (1, -1, 0)]
    votes: dict[Hashable, float] = {}
    for group, sign in zip(groups, signs.tolist(), strict=True):
        votes[group] = votes.get(group, 0.0) + sign
    p = sign_test(sum(vote > 0 for vote in votes.values()), sum(vote < 0 for vote in votes.values()))
    return Wins(**bootstrap_rate((signs + 1) / 2, drawn), wins=counts[0], losses=counts[1], ties=counts[2], p=p)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p of so many wins and losses where both are equally likely; ties say nothing and are left out.

    Twice the smaller tail of Binomial(n, 1/2), at most 1. Summed from its largest term down, each from the last by a ratio, so that it is exact
    to float64 for any n.
    """
    n, fewer = wins + losses, min(wins, losses)
    if fewer < 0:
        raise ValueError(f"counts are needed: got {wins} wins and {losses} losses")
    if 2 * fewer >= n - 1:
        return 1.0
    term = total = 1.0
    for k in range(fewer, 0, -1):
        term *= k / (n - k + 1)
        total += term
        if term < total * 1e-17:
            break
    largest = math.lgamma(n + 1) - math.lgamma(fewer + 1) - math.lgamma(n - fewer + 1) - n * math.log(2)
    return min(1.0, 2 * math.exp(largest) * total)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p as it stands when all of them were looked at (Holm 1979): below .05 for one of them means a chance of .05 for any false one."""
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = worst
    return adjusted
