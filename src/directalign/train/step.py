"""One optimiser update: every loss is backed up as it appears, so memory is one branch; nothing moves if a number is not finite."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..interfaces import Method
from ..types import Batch, Loss, NonFiniteError
from .calls import CallCounter
from .distributed import Ranks
from .levels import Levels
from .sharding import whole

REMEDY = "lower train.learning_rate or the jump of method.moves"


@dataclass(frozen=True)
class Updater:
    """The method and the weights it trains; `update` is the whole of a training step."""

    method: Method
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    clip_norm: float
    ranks: Ranks
    calls: CallCounter

    def update(self, step: int, batches: Sequence[Batch]) -> dict[str, Any]:
        """Average the gradient over `batches` and ranks, clip it, take the step; returns what there is to record of it.

        Raises:
            NonFiniteError: a loss or gradient is not finite. Names update, branch and sigma; weights and optimiser are untouched.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.calls.taken()
        tally, clock = _Tally(), _Clock()
        for batch in batches:
            for loss in clock.through("forward", self.method.losses(batch)):
                _check_loss(loss, step)
                with clock.on("backward"):
                    (loss.value / len(batches)).backward()
                    self._check_gradients(loss, step)
                tally.add(loss)
        with clock.on("update"):
            norm = self._take_step(step)
        forward, backward = self.ranks.sum(torch.tensor(self.calls.taken())).tolist()
        calls = {"forward": forward, "backward": backward}
        return {**tally.record(len(batches), self.ranks), "grad_norm": norm, "network_calls": calls, "phases": dict(clock.seconds)}

    def _take_step(self, step: int) -> float:
        self.ranks.average_gradients(self.parameters)
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)))
        if not math.isfinite(norm):
            raise NonFiniteError(f"update {step}: the norm of the gradient over all ranks is {norm}; the optimiser was not stepped; lower train.learning_rate")
        self.optimizer.step()
        return norm

    def _check_gradients(self, loss: Loss, step: int) -> None:
        norm = whole(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        if not torch.isfinite(norm):
            raise NonFiniteError(_not_finite("gradient", loss, step, norm))


def _check_loss(loss: Loss, step: int) -> None:
    if not torch.isfinite(loss.value):
        raise NonFiniteError(_not_finite("loss", loss, step, loss.value))


def _not_finite(what: str, loss: Loss, step: int, value: Tensor) -> str:
    sigma = ", ".join(f"{s:.4f}" for s in loss.levels.get("sigma", []))
    where = f"branch {loss.branch}, sigma {sigma or 'unknown'}"
    return f"update {step}: the {what} is {float(value.detach())} ({where}); the optimiser was not stepped; {REMEDY}"


class _Tally:
    """Sums what the losses of one update say about themselves."""

    def __init__(self) -> None:
        self._losses: dict[str, float] = defaultdict(float)
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._levels = Levels()

    def add(self, loss: Loss) -> None:
        self._losses[loss.branch] += float(loss.value.detach())
        for key, value in loss.metrics.items():
            self._metrics[key].append(value)
        self._levels.add(loss)

    def record(self, num_batches: int, ranks: Ranks) -> dict[str, Any]:
        """Means over the batches and ranks: the loss whole and by branch, the metrics, and the curves by noise level."""
        losses = _over_ranks({branch: value / num_batches for branch, value in self._losses.items()}, ranks)
        metrics = _over_ranks({key: sum(values) / len(values) for key, values in self._metrics.items()}, ranks)
        reward = metrics.pop("reward", None)
        return {"loss": sum(losses.values()), "reward": reward, "losses": losses, "metrics": metrics, "levels": self._levels.record(ranks)}


def _over_ranks(values: dict[str, float], ranks: Ranks) -> dict[str, float]:
    names = sorted(values)
    total = ranks.sum(torch.tensor([values[name] for name in names], dtype=torch.float64))
    return {name: float(value) / ranks.size for name, value in zip(names, total, strict=True)}


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start

    def through(self, phase: str, losses: Iterator[Loss]) -> Iterator[Loss]:
        """The same losses; the time that each takes to appear is counted."""
        while True:
            with self.on(phase):
                loss = next(losses, None)
            if loss is None:
                return
            yield loss
