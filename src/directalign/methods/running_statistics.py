"""Statistics of scores and rewards over updates and processes, saved in checkpoints."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..interfaces import SINGLE_PROCESS, ProcessGroup
from ..types import PerSample
from .objective_math import Members, PerMember

DECAY = 0.95
"""Weight of older updates in running statistics, per update: a window of about twenty updates."""
MIN_RELATIVE_STD = 1e-6
"""Part of the mean below which a standard deviation is rounding error: the values are constant."""


class Reference:
    """Mean plain score over the first `updates` and all processes: that of the base model."""

    def __init__(self, updates: int) -> None:
        self.updates, self.total, self.count = updates, 0.0, 0

    def update(self, plain: PerSample, step: int, group: ProcessGroup = SINGLE_PROCESS) -> None:
        if step < self.updates:
            plain = plain.detach().cpu().double()
            count = torch.tensor(float(len(plain)), dtype=torch.float64)
            total, seen = group.sum(torch.stack([plain.sum(), count]))
            self.total += float(total)
            self.count += int(seen)

    @property
    def value(self) -> float:
        return self.total / max(self.count, 1)


class RunningStats:
    """Exponentially weighted mean and std of `size` kinds of values, over images and processes.

    Keeps count, sum and sum of squares in float64. An update uses what was recorded in the updates
    before it, so the result does not depend on how it is split into branches, accumulated batches
    and processes. Only the first update uses its own values so far.
    """

    def __init__(self, size: int) -> None:
        self.before = torch.zeros(3, size, dtype=torch.float64)
        self.current, self.step = torch.zeros_like(self.before), -1

    def update(self, values: Members, step: int, group: ProcessGroup = SINGLE_PROCESS) -> None:
        """Add values (m, b) of update `step`; every process must call this equally often."""
        if step != self.step:
            self.before = DECAY * (self.before + self.current)
            self.current, self.step = torch.zeros_like(self.current), step
        new = values.detach().double().cpu()
        sums = torch.stack([torch.ones_like(new).sum(1), new.sum(1), new.square().sum(1)])
        self.current = self.current + group.sum(sums)

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
        return self.before if bool((self.before[0] > 0).all()) else self.current

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "current": self.current, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.before, self.current, self.step = state["before"], state["current"], state["step"]
