"""One optimizer step: each loss is backpropagated as the method yields it, so that one graph is in memory at a time.

If a loss or gradient is not finite, weights and optimizer stay as they are.
"""

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
from ..types import Batch, LossTerm, NonFiniteError
from .distributed import TorchProcessGroup, whole

REMEDY = "lower train.learning_rate or the jump of method.noise_levels"


@dataclass(frozen=True)
class TrainStep:
    """The method and the weights it trains; `update` is the whole of a training step."""

    method: Method
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    max_grad_norm: float
    ranks: TorchProcessGroup
    nfe: NFECounter

    def __call__(self, step: int, batches: Sequence[Batch]) -> dict[str, Any]:
        """Average the gradient over `batches` and ranks, clip it, take the step; returns what there is to record of it.

        Raises:
            NonFiniteError: a loss or gradient is not finite. Names update, branch and sigma; weights and optimiser are untouched.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.nfe.take()
        totals, clock = _Record(), _Clock()
        for batch in batches:
            for loss in clock.through("forward", self.method.losses(batch)):
                _check_loss(loss, step)
                with clock.on("backward"):
                    (loss.value / len(batches)).backward()
                    self._check_gradients(loss, step)
                totals.add(loss)
        with clock.on("update"):
            norm = self._take_step(step)
        forward, backward = self.ranks.sum(torch.tensor(self.nfe.take())).tolist()
        calls = {"forward": forward, "backward": backward}
        return {
            **totals.record(len(batches), self.ranks),
            "grad_norm": norm,
            "nfe": calls,
            "phases": dict(clock.seconds),
        }

    def _take_step(self, step: int) -> float:
        self.ranks.average_gradients(self.parameters)
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)))
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"update {step}: the norm of the gradient over all ranks is {norm}; the optimiser was not stepped; lower train.learning_rate"
            )
        self.optimizer.step()
        return norm

    def _check_gradients(self, loss: LossTerm, step: int) -> None:
        norm = whole(
            nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        )
        if not torch.isfinite(norm):
            raise NonFiniteError(_not_finite("gradient", loss, step, norm))


def _check_loss(loss: LossTerm, step: int) -> None:
    if not torch.isfinite(loss.value):
        raise NonFiniteError(_not_finite("loss", loss, step, loss.value))


def _not_finite(what: str, loss: LossTerm, step: int, value: Tensor) -> str:
    sigma = ", ".join(f"{s:.4f}" for s in loss.levels.get("sigma", []))
    where = f"branch {loss.branch}, sigma {sigma or 'unknown'}"
    return f"update {step}: the {what} is {float(value.detach())} ({where}); the optimiser was not stepped; {REMEDY}"


class _Record:
    """Sums what the losses of one update say about themselves."""

    def __init__(self) -> None:
        self._losses: dict[str, float] = defaultdict(float)
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._histogram = SigmaHistogram()

    def add(self, loss: LossTerm) -> None:
        self._losses[loss.branch] += float(loss.value.detach())
        for key, value in loss.metrics.items():
            self._metrics[key].append(value)
        self._histogram.add(loss)

    def record(self, num_batches: int, ranks: TorchProcessGroup) -> dict[str, Any]:
        """Means over the batches and ranks: the loss whole and by branch, the metrics, and the curves by noise level."""
        losses = _over_ranks(
            {branch: value / num_batches for branch, value in self._losses.items()}, ranks
        )
        metrics = _over_ranks(
            {key: sum(values) / len(values) for key, values in self._metrics.items()}, ranks
        )
        reward = metrics.pop("reward", None)
        return {
            "loss": sum(losses.values()),
            "reward": reward,
            "losses": losses,
            "metrics": metrics,
            "levels": self._histogram.record(ranks),
        }


def _over_ranks(values: dict[str, float], ranks: TorchProcessGroup) -> dict[str, float]:
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

    def through(self, phase: str, losses: Iterator[LossTerm]) -> Iterator[LossTerm]:
        """The same losses; the time that each takes to appear is counted."""
        while True:
            with self.on(phase):
                loss = next(losses, None)
            if loss is None:
                return
            yield loss


class NFECounter:
    """Counts from the moment it is made; `take` returns what came since it was last asked."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._forward, self._backward = 0, 0
        denoiser.register_forward_hook(self._count)

    def take(self) -> tuple[int, int]:
        """Samples through the network, and samples that a gradient came back through."""
        counts = self._forward, self._backward
        self._forward, self._backward = 0, 0
        return counts

    def _count(self, module: nn.Module, given: Any, output: Any) -> None:
        pred = output if isinstance(output, Tensor) else output[0]
        if isinstance(pred, Tensor):
            self._count_call(pred, len(pred))
        else:  # some networks return a list of samples
            for sample in pred:
                self._count_call(sample, 1)

    def _count_call(self, pred: Tensor, samples: int) -> None:
        self._forward += samples
        if pred.requires_grad:
            pred.register_hook(lambda gradient: self._count_backward(samples))

    def _count_backward(self, samples: int) -> None:
        self._backward += samples


NUM_BINS = 20


class SigmaHistogram:
    """Sums over one step of the per-sample records of its losses, in `NUM_BINS` equal bins of sigma in [0, 1]."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Tensor]] = {}

    def add(self, loss: LossTerm) -> None:
        """Take in one loss's `levels`: equally long lists, one of them `sigma`."""
        if "sigma" not in loss.levels:
            return
        sigma = torch.tensor(loss.levels["sigma"], dtype=torch.float64)
        bins = (sigma * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        sums = self._sums.setdefault(loss.branch, {})
        for key, values in {"n": [1.0] * len(sigma), **loss.levels}.items():
            sums.setdefault(key, torch.zeros(NUM_BINS, dtype=torch.float64)).index_add_(
                0, bins, torch.tensor(values, dtype=torch.float64)
            )

    def record(self, ranks: TorchProcessGroup) -> dict[str, list[dict[str, int | float]]]:
        """{branch: [{"sigma", "n", "gain", "recovery_error", "reward", ...}]}, one entry per bin that was visited on any rank."""
        return {
            branch: _rows({key: ranks.sum(sums[key]) for key in sorted(sums)})
            for branch, sums in sorted(self._sums.items())
        }


def _rows(sums: dict[str, Tensor]) -> list[dict[str, int | float]]:
    count = sums["n"]
    return [
        {
            "n": int(count[place]),
            **{
                key: float(values[place] / count[place])
                for key, values in sums.items()
                if key != "n"
            },
        }
        for place in range(NUM_BINS)
        if count[place] > 0
    ]
