"""Measure whole training updates of one model: time by phase, memory and operations.

A phase is defined by the call: the denoiser without gradient (rollout) or with gradient (train
call), decode, reward, backward (recomputation included), optimizer. The device is synchronized at
both ends of a phase; the whole update is timed separately, without those waits.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from directalign import config
from directalign.methods import load_method
from directalign.models import load_model, trainable
from directalign.rewards import load_reward
from directalign.training.optim import adamw
from directalign.types import Batch


@dataclass(frozen=True)
class Figures:
    """Median seconds of an update and of its phases; peak GiB over all updates (None on a CPU)."""

    seconds: float
    phases: dict[str, float]
    peak_gib: float | None


class Bench:
    """A loaded run; the models of the previous one are freed first."""

    def __init__(self, run: config.RunConfig, offline: bool, cache: Path, num_updates: int) -> None:
        gc.collect()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.run, self.offline, self.num_updates = run, offline, num_updates
        self.model = load_model(run.model, self.device, run.seed)
        self.reward = load_reward(run.reward, self.device)
        self.weights = trainable(self.model)
        self.optimizer = adamw(self.weights, run.train, run.seed)
        self.method = load_method(run, self.model, self.reward)
        self.clock = PhaseClock(self.device)
        self._free_text_encoders(cache)
        self._watch()

    def update(self, step: int) -> None:
        """Losses, their gradients, clip and step, on one batch."""
        self.optimizer.zero_grad(set_to_none=True)
        for loss in self.method.losses(self._batch(step)):
            with self.clock.on("backward"):
                loss.value.backward()
        with self.clock.on("optimiser"):
            torch.nn.utils.clip_grad_norm_(self.weights.values(), self.run.train.max_grad_norm)
            self.optimizer.step()

    def operations(self) -> float:
        """Floating-point operations that one update executes."""
        with FlopCounterMode(display=False) as counter:
            self.update(0)
        return float(counter.get_total_flops())

    def figures(self, steps: Iterable[int]) -> Figures:
        """Time every step twice: as a whole, then by phase."""
        wholes, phases = [], defaultdict(list)
        for step in steps:
            self.clock.active = False
            wholes.append(self.timed(self.device, lambda step=step: self.update(step)))
            self.clock.active = True
            self.clock.seconds.clear()
            self.update(step)
            for name, seconds in self.clock.seconds.items():
                phases[name].append(seconds)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        return Figures(
            statistics.median(wholes),
            {name: statistics.median(each) for name, each in phases.items()},
            peak,
        )

    @staticmethod
    def timed(device: torch.device, act: Callable[[], Any]) -> float:
        """Seconds of one call, to the moment the device is done."""
        _wait(device)
        start = time.perf_counter()
        act()
        _wait(device)
        return time.perf_counter() - start

    def _free_text_encoders(self, cache: Path) -> None:
        """As the recipe has it: prompts are encoded once, ahead, and are no part of an update."""
        prompts: Any = getattr(self.model, "prompts")  # noqa: B009 (of the models alone, not of the contract)
        prompts.store(
            [prompt for step in range(self.num_updates) for prompt in self._prompts(step)], cache
        )
        prompts.free()

    def _prompts(self, step: int) -> tuple[str, ...]:
        b = self.run.data.batch_size
        return tuple(f"a photograph of the number {step * b + index}" for index in range(b))

    def _batch(self, step: int) -> Batch:
        b, settings, prompts = self.run.data.batch_size, self.run.rollout, self._prompts(step)
        images = (
            torch.rand(b, 3, settings.height or 720, settings.width or 720, device=self.device)
            if self.offline
            else None
        )
        return Batch(step, prompts, images, self.run.seed)

    def _watch(self) -> None:
        """Put the clock around the calls that a phase is made of."""
        family: Any = self.model
        predict = family.predict
        family.predict = lambda *given: self.clock.around(
            "train call" if torch.is_grad_enabled() else "rollout", predict, *given
        )
        for owner, name, phase in (
            (family, "decode", "decode"),
            (family, "encode_image", "encode image"),
            (self.reward, "encode", "reward"),
        ):
            setattr(owner, name, partial(self.clock.around, phase, getattr(owner, name)))


class PhaseClock:
    """Seconds by phase, while it is active."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.active = device, False
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, phase: str) -> Any:
        if not self.active:
            yield
            return
        _wait(self.device)
        start = time.perf_counter()
        yield
        _wait(self.device)
        self.seconds[phase] += time.perf_counter() - start

    def around(self, phase: str, act: Callable[..., Any], *given: Any) -> Any:
        with self.on(phase):
            return act(*given)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
