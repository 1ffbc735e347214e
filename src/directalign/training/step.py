"""One optimizer step. Each loss is backpropagated as the method yields it: one graph at a time.

If a loss or gradient is not finite, weights and optimizer stay as they are. What a step took of
the machine is no part of its result.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..device import to_host
from ..interfaces import Method
from ..types import Batch, LossTerm, NonFiniteError
from .distributed import TorchProcessGroup, unsharded

NUM_BINS = 20


@dataclass
class TrainStep:
    """A method and the weights that it trains; a call is one step.

    `is_updating`: set before the optimizer steps; who counts the steps unsets it.
    """

    method: Method
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    max_grad_norm: float
    group: TorchProcessGroup
    nfe: NFECounter
    is_updating: bool = False

    def __call__(self, step: int, batches: Sequence[Batch]) -> dict[str, Any]:
        """Average the gradient over batches and ranks, clip it, update; returns a record.

        The device is waited for once, before the update.
        Raises: NonFiniteError with step, branch and sigma if a loss or gradient is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.nfe.take()
        losses: list[LossTerm] = []
        start, laps = time.perf_counter(), _Laps(self.group.device)
        for batch in batches:
            for loss in self.method.losses(batch):
                laps.end("forward")
                (loss.value / len(batches)).backward()
                laps.end("backward")
                losses.append(_detached(loss))
        self.group.average_gradients(self.parameters)
        norm = unsharded(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        losses, norm = _on_host(losses, norm)
        _check_finite(step, losses, norm)
        self.is_updating = True
        self.optimizer.step()
        seconds = laps.seconds()
        seconds["update"] = time.perf_counter() - start - sum(seconds.values())
        forward, backward = self.group.sum(torch.tensor(self.nfe.take())).tolist()
        return {
            **_summed(losses, len(batches), self.group),
            "grad_norm": norm,
            "nfe": {"forward": forward, "backward": backward},
            "phases": seconds,
        }


class _Laps:
    """Seconds of phases that follow each other: of a CUDA GPU's own work, elsewhere of this
    process, which on Apple's GPU goes on before the work is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, Any]] = [("", self._now())]

    def end(self, phase: str) -> None:
        """A phase, begun where the one before ended, ends here."""
        self.marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """Total of each phase; to be called when the device's work is done."""
        found = {"forward": 0.0, "backward": 0.0}
        for (_, before), (phase, now) in pairwise(self.marks):
            is_time = isinstance(now, float)
            found[phase] += now - before if is_time else before.elapsed_time(now) / 1000
        return found

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def _detached(loss: LossTerm) -> LossTerm:
    """Without its graph."""
    value, metrics, levels = tree_map_only(
        Tensor, Tensor.detach, (loss.value, dict(loss.metrics), dict(loss.levels))
    )
    return LossTerm(value, loss.branch, metrics, levels)


def _on_host(losses: Sequence[LossTerm], norm: Tensor) -> tuple[list[LossTerm], float]:
    """The same in Python's numbers, values as float64 on the CPU."""
    parts = [(each.value, each.metrics, each.levels) for each in losses]
    read, norm_read = to_host((parts, norm))
    found = [
        LossTerm(torch.tensor(value, dtype=torch.float64), each.branch, metrics, levels)
        for each, (value, metrics, levels) in zip(losses, read, strict=True)
    ]
    return found, norm_read


def _check_finite(step: int, losses: Sequence[LossTerm], norm: float) -> None:
    for loss in losses:
        if not math.isfinite(value := float(loss.value)):
            sigma = ", ".join(f"{s:.4f}" for s in loss.levels.get("sigma", []))
            where = f"branch {loss.branch}, sigma {sigma or 'unknown'}"
            raise _not_finite(step, f"the loss is {value} ({where})")
    if not math.isfinite(norm):
        raise _not_finite(step, f"the norm of the gradient over all ranks is {norm}")


def _not_finite(step: int, what: str) -> NonFiniteError:
    return NonFiniteError(
        f"step {step}: {what}; the optimizer was not stepped; lower train.learning_rate or the "
        "jump of method.noise_levels"
    )


def _summed(
    losses: Sequence[LossTerm], num_batches: int, group: TorchProcessGroup
) -> dict[str, Any]:
    """Means over batches and ranks: loss in total and by branch, metrics, levels by sigma."""
    by_branch: dict[str, float] = defaultdict(float)
    values: dict[str, list[float]] = defaultdict(list)
    for loss in losses:
        by_branch[loss.branch] += float(loss.value)
        for key, value in loss.metrics.items():
            values[key].append(float(value))
    branches = _mean_over_ranks({key: each / num_batches for key, each in by_branch.items()}, group)
    metrics = _mean_over_ranks({key: sum(each) / len(each) for key, each in values.items()}, group)
    levels, reward = levels_by_sigma(losses, group), metrics.pop("reward", None)
    totals = {"loss": sum(branches.values()), "reward": reward, "losses": branches}
    return {**totals, "metrics": metrics, "levels": levels}


def _mean_over_ranks(values: dict[str, float], group: TorchProcessGroup) -> dict[str, float]:
    names = sorted(values)
    total = group.sum(torch.tensor([values[name] for name in names], dtype=torch.float64))
    return {name: float(value) / group.size for name, value in zip(names, total, strict=True)}


def levels_by_sigma(
    losses: Sequence[LossTerm], group: TorchProcessGroup
) -> dict[str, list[dict[str, int | float]]]:
    """Means of the losses' per-sample `levels` in `NUM_BINS` bins of sigma in [0, 1], over ranks:
    {branch: [{"n", "sigma", "gain", "reward", ...}]}, one row per bin with samples."""
    sums: dict[str, dict[str, Tensor]] = {}
    for loss in losses:
        if "sigma" not in loss.levels:
            continue
        sigma = torch.tensor(loss.levels["sigma"], dtype=torch.float64)
        bins = (sigma * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        own = sums.setdefault(loss.branch, {})
        for key, values in {"n": [1.0] * len(sigma), **loss.levels}.items():
            total = own.setdefault(key, torch.zeros(NUM_BINS, dtype=torch.float64))
            total.index_add_(0, bins, torch.tensor(values, dtype=torch.float64))
    found: dict[str, list[dict[str, int | float]]] = {}
    for branch, own in sorted(sums.items()):
        totals = {key: group.sum(own[key]) for key in sorted(own)}
        count, found[branch] = totals.pop("n"), []
        for place in count.nonzero().flatten().tolist():
            means = {key: float(values[place] / count[place]) for key, values in totals.items()}
            found[branch].append({"n": int(count[place]), **means})
    return found


class NFECounter:
    """Number of function evaluations of a denoiser, in samples; `take` returns and resets it."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._forward, self._backward = 0, 0
        self._hook = denoiser.register_forward_hook(self._count)

    def take(self) -> tuple[int, int]:
        """(samples forward, samples backward) since the last call."""
        counts = self._forward, self._backward
        self._forward, self._backward = 0, 0
        return counts

    def close(self) -> None:
        """Count no further."""
        self._hook.remove()

    def _count(self, module: nn.Module, given: Any, output: Any) -> None:
        pred = output if isinstance(output, Tensor) else output[0]
        # some networks return a list of samples
        calls = [(pred, len(pred))] if isinstance(pred, Tensor) else [(each, 1) for each in pred]
        for tensor, samples in calls:
            self._forward += samples
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient, n=samples: self._count_backward(n))

    def _count_backward(self, samples: int) -> None:
        self._backward += samples


GIB = 2**30


def start_measuring(device: torch.device) -> None:
    """Call before a step: its peak is counted from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def resources_used(device: torch.device, images: int, seconds: float) -> dict[str, float]:
    """`images_per_second` over all ranks, and `peak_memory_gib` of this rank.

    The peak is that of tensors on a CUDA GPU during the step; on Apple's GPU and the CPU, what the
    driver or the process holds at its end.
    """
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    elif device.type == "mps":
        memory = torch.mps.driver_allocated_memory()
    else:
        memory = psutil.Process().memory_info().rss
    return {"images_per_second": images / seconds, "peak_memory_gib": memory / GIB}
