"""AdamW over the trained weights, the learning rate as a pure function of the step (a resume needs no scheduler state), and EMA."""

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
    """The weights that carry a gradient, by name: float32, or bfloat16 where `model.trained_dtype` says so, all alike."""
    named = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    if not named:
        raise DirectAlignError(
            "model.tune leaves nothing to train: no weight of the denoiser asks for a gradient; check model.lora.targets"
        )
    dtypes = {p.dtype for p in named.values()}
    assert dtypes in ({torch.float32}, {torch.bfloat16}), (
        f"trained weights must all be float32 or all be bfloat16, they are {dtypes}"
    )
    return named


def learning_rate(settings: TrainConfig, step: int) -> float:
    """The rate of update `step` (0 is the first): linear warm-up to the peak, then constant, or falling to 0 at `num_steps`."""
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
    """The optimiser that `train.optimizer` names; its rate is set before each update by `set_learning_rate`.

    `seed` is that of the random rounding in 8 bits. bfloat16 weights are for adamw8bit alone: rounded to nearest they would not move.
    """
    given = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw8bit":
        return AdamW8bit(parameters.values(), seed=seed, **given)
    assert all(p.dtype == torch.float32 for p in parameters.values()), (
        "the recipe's validator lets bfloat16 pass for adamw8bit alone"
    )
    return torch.optim.AdamW(parameters.values(), **given)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of weights this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class EMA:
    """The averaged copy of `parameters`, by the same names."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.model = EMAModel(self.parameters.values(), decay=decay)

    def update(self) -> None:
        """Take in the weights after an optimiser update."""
        self.model.step(self.parameters.values())

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """The network wears the averaged weights inside, its own again outside, also after an error."""
        self.model.store(self.parameters.values())
        self.model.copy_to(self.parameters.values())
        try:
            yield
        finally:
            self.model.restore(self.parameters.values())

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by name, to be read or filled; sharded where the weights are."""
        return dict(zip(self.parameters, self.model.shadow_params, strict=True))

    def continue_after(self, num_updates: int) -> None:
        """Go on with `tensors`, filled with an average that has seen `num_updates` updates."""
        self.model.optimization_step = num_updates
