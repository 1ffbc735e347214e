"""How sure a number is: Wilson intervals for rates, a paired bootstrap for differences on the same prompt-seed pairs.

Every interval is 95 % and travels as {"value", "low", "high", "n"}, the form that summaries and the page use.
"""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

Z_95 = 1.959963984540054


class Interval(TypedDict):
    """A number between the two ends of its 95 % interval, from n samples."""

    value: float
    low: float
    high: float
    n: int


def wilson(rate: float, n: int, z: float = Z_95) -> Interval:
    """Wilson's score interval of a rate in [0, 1] seen on n samples (Wilson 1927): honest at 0, at 1 and for small n."""
    if n < 1 or not 0 <= rate <= 1:
        raise ValueError(f"a rate in [0, 1] from at least one sample is needed: got rate {rate} from n {n}")
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(value=rate, low=max(0.0, min(rate, centre - half)), high=min(1.0, max(rate, centre + half)), n=n)


def rate(answers: Float[Tensor, " n"]) -> Interval:
    """Interval of the mean of answers in [0, 1], one per image."""
    return wilson(min(1.0, max(0.0, answers.double().mean().item())), len(answers))


def paired_difference(before: Float[Tensor, " n"], after: Float[Tensor, " n"], resamples: int = 2000) -> Interval:
    """Mean of `after − before`, pairs resampled together (percentile bootstrap, fixed seed: the same data, the same answer)."""
    difference = (after - before).double().cpu()
    n = len(difference)
    picks = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(0))
    low, high = difference[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value=difference.mean().item(), low=low, high=high, n=n)


def win_rate(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> Interval:
    """Share of pairs on which `after` is the larger; a tie is half a win."""
    wins = (after > before).double() + 0.5 * (after == before).double()
    return rate(wins)
