"""The sampling grid of rectified-flow pipelines: linspace(1, 1/n) under the shift of the checkpoint's scheduler, for plain Euler steps."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import cast

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from jaxtyping import Float64
from torch import Tensor

from ..types import DirectAlignError


def shift_by_size(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> float:
    """The exponent of the shift for an image of so many tokens; linear in them between the two sizes that the scheduler names."""
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(tokens, *(scheduler.config[name] for name in names))


def euler_grid(scheduler: FlowMatchEulerDiscreteScheduler, num_sampling_steps: int, exponent: float) -> Float64[Tensor, " levels"]:
    """The levels that the scheduler visits, falling, and 0 at the end; a scheduler with a fixed shift does not read `exponent`.

    One that ends above 0 (shift_terminal) gives NaN for a single step.
    """
    with np.errstate(invalid="ignore"):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_sampling_steps, num_sampling_steps).tolist(), mu=exponent)
    return cast(Tensor, scheduler.sigmas).double()


def check_euler(folder: FilePath, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
    """Refuses a checkpoint whose scheduler does something else than Euler from noise to clean; `folder` is the pipeline's."""
    for name in ("stochastic_sampling", "invert_sigmas"):
        if scheduler.config.get(name):
            raise DirectAlignError(f"{folder / 'scheduler'}: {name} is on, sampling here is plain Euler: set it to false")
