"""What happened at which noise level: means of recovery error, gain and reward in bins of sigma, branch by branch.

A jump that is too large for its level shows here as a recovery error or gain that stands out, long before the images suffer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Loss
from .distributed import Ranks

NUM_BINS = 20


class Levels:
    """Sums over one step of the per-sample records of its losses, in `NUM_BINS` equal bins of sigma in [0, 1]."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Tensor]] = {}

    def add(self, loss: Loss) -> None:
        """Take in one loss's `levels`: equally long lists, one of them `sigma`."""
        if "sigma" not in loss.levels:
            return
        sigma = torch.tensor(loss.levels["sigma"], dtype=torch.float64)
        bins = (sigma * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        sums = self._sums.setdefault(loss.branch, {})
        for key, values in {"n": [1.0] * len(sigma), **loss.levels}.items():
            sums.setdefault(key, torch.zeros(NUM_BINS, dtype=torch.float64)).index_add_(0, bins, torch.tensor(values, dtype=torch.float64))

    def record(self, ranks: Ranks) -> dict[str, list[dict[str, int | float]]]:
        """{branch: [{"sigma", "n", "gain", "recovery_error", "reward", ...}]}, one entry per bin that was visited on any rank."""
        return {branch: _rows({key: ranks.sum(sums[key]) for key in sorted(sums)}) for branch, sums in sorted(self._sums.items())}


def _rows(sums: dict[str, Tensor]) -> list[dict[str, int | float]]:
    count = sums["n"]
    return [
        {"n": int(count[place]), **{key: float(values[place] / count[place]) for key, values in sums.items() if key != "n"}}
        for place in range(NUM_BINS)
        if count[place] > 0
    ]
