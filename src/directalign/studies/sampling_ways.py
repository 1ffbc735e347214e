"""Other ways to an image than the recipe's: diffusers' samplers on the same network, and long chains of image to image.

A sampler is diffusers' own scheduler, driven as its pipelines drive it: the network is asked at the level where the
scheduler stands, and the scheduler takes the step.
"""

from __future__ import annotations

from ..diffusion.recovery import inject
from ..diffusion.rng import FRESH_NOISE, draw_noise, generator_for
from ..diffusion.sampling import sample
from ..interfaces import Model
from ..types import Conditioning, Images, Latents
from collections.abc import Callable, Iterator, Sequence
from typing import Any
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler


STRENGTH = 0.4
"""The level that every round of a chain goes back to."""
CHAIN_STEPS = 4


def euler(num_sampling_steps: int) -> Any:
    """The flow's plain sampler, equal to `rollout.sample`; as many network calls as steps."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_sampling_steps, num_sampling_steps).tolist())
    return scheduler


def heun(num_sampling_steps: int) -> Any:
    """Second order by a trial step: two network calls a step but the last."""
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(num_sampling_steps)
    return scheduler


def dpm_solver(num_sampling_steps: int) -> Any:
    """DPM-Solver++ (2M) on the flow's levels."""
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(num_sampling_steps)
    return scheduler


def unipc(num_sampling_steps: int) -> Any:
    """UniPC on the flow's levels."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(num_sampling_steps)
    return scheduler


SAMPLERS: dict[str, Callable[[int], Any]] = {"Euler": euler, "Heun": heun, "DPM-Solver++ 2M": dpm_solver, "UniPC": unipc}


@torch.no_grad()
def scheduled(family: Model, cond: Conditioning, noise: Latents, scheduler: Any) -> Latents:
    """Clean latents of a flow model by a diffusers scheduler whose timesteps are set; it is used up by this."""
    assert family.path == "flow", family.path
    x_t = noise
    scheduler.set_begin_index(0)
    for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):  # the levels have the 0 behind the last step too
        pred = family.predict(x_t, sigma.double().expand(len(x_t)).to(x_t.device), cond)
        x_t = scheduler.step(pred, timestep, x_t, return_dict=False)[0]
    return x_t


@torch.no_grad()
def chain(family: Model, cond: Conditioning, images: Images, seed: int, rounds: int) -> Iterator[Images]:
    """The images after each round of: encode, noise to `STRENGTH` with new noise, denoise under the prompt, decode."""
    sigmas = torch.linspace(STRENGTH, 0, CHAIN_STEPS + 1, dtype=torch.float64)
    for number in range(rounds):
        x0 = family.encode_image(images)
        noise = draw_noise(x0.shape, generator_for(seed, FRESH_NOISE, number), x0.device)
        x_t = inject(family.path, x0, noise, sigmas[:1].expand(len(x0)).to(x0.device)).x_t
        images = family.decode(sample(family, cond, x_t, sigmas)).float().clamp(0, 1)
        yield images


def in_batches(make: Callable[[int, int], Images], count: int, size: int) -> Images:
    """`make(first, last)` for `count` images, at most `size` at once, together on the CPU."""
    bounds: Sequence[tuple[int, int]] = [(first, min(first + size, count)) for first in range(0, count, size)]
    return torch.cat([make(first, last).cpu() for first, last in bounds])
