"""AdamW, the learning rate as a pure function of the step, and EMA."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ..config import TrainConfig
from ..types import DirectAlignError
from .adamw8bit import AdamW8bit


def trained_parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name; all float32 or all bfloat16.

    Raises: DirectAlignError if there are none.
    """
    named = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    if not named:
        raise DirectAlignError(
            "model.tune: no weight of the denoiser requires a gradient; check model.lora.targets"
        )
    dtypes = {p.dtype for p in named.values()}
    assert dtypes in ({torch.float32}, {torch.bfloat16}), (
        f"trained weights must all be float32 or all be bfloat16, they are {dtypes}"
    )
    return named


def learning_rate(settings: TrainConfig, step: int) -> float:
    """Of step `step` (0 is the first): linear warm-up, then constant or falling to 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    progress = (step - settings.warmup_steps) / max(settings.num_steps - settings.warmup_steps, 1)
    factor = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }[settings.schedule]
    return settings.learning_rate * factor


def adamw(
    parameters: dict[str, nn.Parameter], settings: TrainConfig, seed: int = 0
) -> torch.optim.Optimizer:
    """The optimizer that `train.optimizer` names; `seed` is for the random rounding in 8 bits.

    bfloat16 weights need adamw8bit: with rounding to nearest, small updates would be lost.
    """
    given = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw8bit":
        return AdamW8bit(parameters.values(), seed=seed, **given)
    assert all(p.dtype == torch.float32 for p in parameters.values()), (
        "bfloat16 weights need adamw8bit"
    )
    return torch.optim.AdamW(parameters.values(), **given)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class EMA:
    """Exponential moving average of `parameters`, by the same names."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.model = EMAModel(self.parameters.values(), decay=decay)

    def update(self) -> None:
        """Average in the current weights; call after an optimizer step."""
        self.model.step(self.parameters.values())

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the parameters hold the averaged weights; restored afterwards, even on error."""
        self.model.store(self.parameters.values())
        self.model.copy_to(self.parameters.values())
        try:
            yield
        finally:
            self.model.restore(self.parameters.values())

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by name, by reference; sharded as the parameters are."""
        return dict(zip(self.parameters, self.model.shadow_params, strict=True))

    def continue_after(self, num_updates: int) -> None:
        """Continue an average of `num_updates` updates, whose `tensors` have been filled in."""
        self.model.optimization_step = num_updates
