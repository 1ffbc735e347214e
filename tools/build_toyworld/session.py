"""Resumable training of the assets: AdamW, warm-up and cosine, EMA, a state file.

Batches are drawn from a generator seeded by the step, so a resumed build trains on the same batches
as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

STATE_EVERY_SECONDS = 60.0


@dataclass(frozen=True)
class Budget:
    """How long one asset trains: optimiser steps, images per step, peak learning rate.

    `bfloat16`: the forward pass in that precision; weights and optimiser stay in float32.
    """

    steps: int
    batch: int
    learning_rate: float
    ema_decay: float = 0.999
    weight_decay: float = 1e-3
    warmup: int = 200
    clip: float = 1.0
    bfloat16: bool = False


def step_generator(name: str, step: int) -> torch.Generator:
    """The generator of one step of one asset, a function of both alone."""
    seed = sum(ord(c) * 257**i for i, c in enumerate(name)) % (2**31)
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def fit(
    name: str,
    modules: nn.Module,
    loss_of: Callable[[int, torch.Generator], torch.Tensor],
    budget: Budget,
    folder: Path,
    log: Callable[[str], None] = print,
) -> nn.Module:
    """Train `modules` in place and load their EMA weights at the end.

    `loss_of(step, generator)` returns the scalar loss of one step. The state is written atomically
    to `folder/NAME.state.pt` about once a minute; a finished training is not repeated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / f"{name}.state.pt"
    device = next(modules.parameters()).device
    trained = [p for p in modules.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, budget.learning_rate, betas=(0.9, 0.98), weight_decay=budget.weight_decay
    )
    ema = [p.detach().clone() for p in trained]
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        ema, start = state["ema"], state["step"]
        log(f"{name}: continues at step {start} of {budget.steps}")
    began = saved = time.monotonic()
    running = None
    for step in range(start, budget.steps):
        for group in optimizer.param_groups:
            group["lr"] = budget.learning_rate * _schedule(step, budget)
        with torch.autocast(device.type, torch.bfloat16, enabled=budget.bfloat16):
            loss = loss_of(step, step_generator(name, step))
        if not torch.isfinite(loss):
            problem = f"{name}: loss is {loss.item()} at step {step}"
            raise FloatingPointError(f"{problem}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, budget.clip)
        optimizer.step()
        decay = min(budget.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(ema, [p.detach() for p in trained], 1 - decay)
        value = loss.item()
        running = value if running is None else 0.99 * running + 0.01 * value
        if (step + 1) % 100 == 0:
            rate = (time.monotonic() - began) / (step + 1 - start)
            log(f"{name}: step {step + 1}/{budget.steps} loss {running:.4f} {rate:.3f} s/step")
        if time.monotonic() - saved > STATE_EVERY_SECONDS or step + 1 == budget.steps:
            state = {"modules": modules.state_dict(), "optimizer": optimizer.state_dict()}
            partial = state_file.with_suffix(".partial")
            torch.save({**state, "ema": ema, "step": step + 1}, partial)
            partial.replace(state_file)
            saved = time.monotonic()
    with torch.no_grad():
        for parameter, average in zip(trained, ema, strict=True):
            parameter.copy_(average)
    return modules.eval()


def _schedule(step: int, budget: Budget) -> float:
    if step < budget.warmup:
        return (step + 1) / budget.warmup
    done = (step - budget.warmup) / max(1, budget.steps - budget.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
