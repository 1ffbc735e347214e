"""Running mean and spread of numbers that come image by image, on all ranks together.

What an update uses was seen in the updates before it, so it matters not how the update was cut into branches, accumulated batches
and ranks. The first alone has nothing before it and goes by what it has seen itself so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..interfaces import ALONE, Together

Values = Float[Tensor, "m b"]
PerMember = Float[Tensor, " m"]
DECAY = 0.95
"""Weight of what is an update older: the memory is of some twenty updates."""
FLAT = 1e-6
"""A spread below this part of the mean is rounding: the numbers are as good as constant."""


class Running:
    """Of `size` kinds of numbers: count, sum and sum of squares in float64, older updates weighing less."""

    def __init__(self, size: int) -> None:
        self.before, self.current, self.step = torch.zeros(3, size, dtype=torch.float64), torch.zeros(3, size, dtype=torch.float64), -1

    def see(self, values: Values, step: int, together: Together = ALONE) -> None:
        """Take in one number per kind and image of update `step`; every rank comes here equally often."""
        if step != self.step:
            self.before, self.current, self.step = DECAY * (self.before + self.current), torch.zeros_like(self.current), step
        seen = values.detach().double().cpu()
        self.current = self.current + together.sum(torch.stack([torch.ones_like(seen).sum(1), seen.sum(1), seen.square().sum(1)]))

    @property
    def means(self) -> PerMember:
        count, total, _ = self._used
        return total / count

    @property
    def spreads(self) -> PerMember:
        """Standard deviation over images; 1 where all were alike, so that it can be divided by."""
        means = self.means
        spread = (self._used[2] / self._used[0] - means.square()).clamp(min=0).sqrt()
        return torch.where(spread > FLAT * means.abs(), spread, torch.ones_like(spread))

    @property
    def sizes(self) -> PerMember:
        """Root mean square."""
        return (self._used[2] / self._used[0]).sqrt()

    @property
    def _used(self) -> Tensor:
        return self.before if bool((self.before[0] > 0).all()) else self.current

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "current": self.current, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.before, self.current, self.step = state["before"], state["current"], state["step"]
