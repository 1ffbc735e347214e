"""AdamW over the trained float32 weights; the learning rate is a pure function of the step, so a resume needs no scheduler state."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..config import Train
from ..types import DirectAlignError


def trained_parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that carry a gradient, by name. They are float32 whatever the dtype of the frozen ones."""
    named = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    if not named:
        raise DirectAlignError("model.tune leaves nothing to train: no weight of the denoiser asks for a gradient; check model.lora.targets")
    narrow = [name for name, p in named.items() if p.dtype != torch.float32]
    assert not narrow, f"trained weights must be float32, {narrow[0]} is {named[narrow[0]].dtype}"
    return named


def learning_rate(settings: Train, step: int) -> float:
    """The rate of update `step` (0 is the first): linear warm-up to the peak, then constant, or falling to 0 at `num_steps`."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    progress = (step - settings.warmup_steps) / max(settings.num_steps - settings.warmup_steps, 1)
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[settings.schedule]
    return settings.learning_rate * factor


def adamw(parameters: dict[str, nn.Parameter], settings: Train) -> torch.optim.AdamW:
    """The optimiser; its rate is set before each update by `set_learning_rate`."""
    return torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of weights this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
