"""A mean over images with its 95 % interval, and its size: the mean in units of a spread."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

NORMAL = 1.96
SMALLEST = 1e-9
"""Spread below which answers count as equal; it keeps the size of an effect without any spread finite."""
Numbers = Float[Tensor, " n"]
Others = Float[Tensor, " m"]


@dataclass(frozen=True)
class Effect:
    """`value` with its normal 95 % interval from `low` to `high`; `size` is the value over a spread of single images."""

    value: float
    low: float
    high: float
    size: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def effect(wanted: Numbers, unwanted: Others, paired: bool, spread: float | None = None) -> Effect:
    """Mean of wanted minus mean of unwanted, both float64, two numbers a side at least.

    Pairs are compared pair by pair. `spread` None takes that of the pairs' differences, or of the two sides pooled.
    """
    value = (wanted.mean() - unwanted.mean()).item()
    if paired:
        own = (wanted - unwanted).std().item()
        error = own / sqrt(len(wanted))
    else:
        own = sqrt((wanted.var() + unwanted.var()).item() / 2)
        error = sqrt(wanted.var().item() / len(wanted) + unwanted.var().item() / len(unwanted))
    size = value / max(own if spread is None else spread, SMALLEST)
    return Effect(value, value - NORMAL * error, value + NORMAL * error, size)


def share(part: float, whole: float) -> float | None:
    """part / whole; None where the whole is as good as nothing."""
    return None if abs(whole) < SMALLEST else part / whole


def mean(values: Tensor) -> float:
    """Mean of all elements in float64."""
    return values.double().mean().item()


def spread(values: Tensor) -> float:
    """Standard deviation over all elements in float64."""
    return torch.std(values.double()).item()
