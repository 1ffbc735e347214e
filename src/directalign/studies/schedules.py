"""Is the closed form exact on other schedules? On the tables of three DDPMs, against diffusers' own DDIM step.

diffusers takes x_t one step down its timesteps in float64, the known noise is subtracted, and that image is compared with
`core.recovery`'s. The same in float32 shows which of the two ways keeps its digits.
"""

from __future__ import annotations

from ..diffusion.path import DDPMTable, alpha, expand_like, target
from ..diffusion.recovery import inject, recover
from ..diffusion.rng import draw_noise, generator_for
from ..types import Latents, Noised
from .running.records import Row
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor


SHAPE = (4, 4, 4)
NUM_STEPS = 50
Predicted = Literal["epsilon", "v"]
DIFFUSERS_NAMES = {"epsilon": "epsilon", "v": "v_prediction"}


@dataclass(frozen=True)
class Schedule:
    """A DDPM's table of alphas, as settings of a diffusers scheduler."""

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    predictions: tuple[Predicted, ...] = ("epsilon", "v")


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULES = {
    "scaled_linear": Schedule("scaled linear (SD 1.5)", SD),
    "cosine": Schedule("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    "zero_snr": Schedule("scaled linear, zero terminal SNR", SD | {"rescale_betas_zero_snr": True}, ("v",)),  # epsilon says nothing of x0 at alpha = 0
}


def exactness(seed: int) -> list[Row]:
    """A row per schedule and prediction: the largest and median differences over all steps of a 50-step grid.

    `largest` is in float64, |recovered − stepped| over the size of the recovered image. `closed_float32` and
    `stepped_float32` are the median differences of both ways in float32 from the float64 image. `roundtrip` is the largest
    error, in timesteps, of timestep -> sigma -> timestep.
    """
    return [
        {"kind": "schedule", "arm": name, "title": schedule.title, "prediction": prediction, "seed": seed, **_row(schedule, prediction, seed)}
        for name, schedule in SCHEDULES.items()
        for prediction in schedule.predictions
    ]


def _row(schedule: Schedule, prediction: Predicted, seed: int) -> Row:
    stepper = ddim(schedule, prediction)
    table = DDPMTable(stepper.alphas_cumprod)
    found = list(_differences(stepper, table, prediction, seed))
    exact, closed, stepped = (torch.tensor(numbers, dtype=torch.float64) for numbers in zip(*found, strict=True))
    medians = {"closed_float32": float(closed.median()), "stepped_float32": float(stepped.median())}
    highest, lowest = float(table.sigmas[-1]), float(table.sigmas[0])
    return {"steps": len(found), "sigma_high": highest, "sigma_low": lowest, "largest": float(exact.max()), **medians, "roundtrip": roundtrip(table)}


def ddim(schedule: Schedule, prediction: Predicted) -> DDIMScheduler:
    """diffusers' DDIM on that table, the table in float64, visiting the last timestep first."""
    fixed = {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing", "prediction_type": DIFFUSERS_NAMES[prediction]}
    stepper = DDIMScheduler(**schedule.settings, **fixed)
    stepper.alphas_cumprod, stepper.final_alpha_cumprod = stepper.alphas_cumprod.double(), stepper.final_alpha_cumprod.double()
    stepper.set_timesteps(NUM_STEPS)
    return stepper


def _differences(stepper: DDIMScheduler, table: DDPMTable, prediction: Predicted, seed: int) -> Iterator[tuple[float, float, float]]:
    """For each step down: (closed form against diffusers, in float64; closed form and stepping in float32 against float64)."""
    for timestep in stepper.timesteps:
        x0, noise, pred = (_drawn(seed, int(timestep), part) for part in range(3))
        landing = int(timestep) - stepper.config["num_train_timesteps"] // NUM_STEPS
        sigma_from = table.sigma_of(timestep[None])
        sigma_to = table.sigma_of(torch.tensor([landing])) if landing >= 0 else torch.zeros(1, dtype=torch.float64)
        noised = inject("vp", x0, noise, sigma_from)
        pred = target("vp", prediction, x0, noise, sigma_from) + pred
        exact = recover("vp", prediction, noised, pred, sigma_to).x0
        single = Noised(noised.x_t.float(), x0.float(), noise.float(), sigma_from)
        closed = recover("vp", prediction, single, pred.float(), sigma_to).x0
        stepped = by_step(stepper, timestep, single, pred.float(), sigma_to)
        yield _apart(by_step(stepper, timestep, noised, pred, sigma_to), exact), _apart(closed, exact), _apart(stepped, exact)


def by_step(stepper: DDIMScheduler, timestep: Tensor, noised: Noised, pred: Latents, sigma_to: Float[Tensor, " b"]) -> Latents:
    """diffusers' step to the next lower timestep, and the known noise out again, in the precision of `pred`."""
    kept = stepper.alphas_cumprod
    stepper.alphas_cumprod = kept.to(pred.dtype)
    x_to = stepper.step(pred, int(timestep), noised.x_t, eta=0.0, return_dict=False)[0]
    stepper.alphas_cumprod = kept
    return (x_to - expand_like(sigma_to, x_to) * noised.noise) / expand_like(alpha("vp", sigma_to), x_to)


def roundtrip(table: DDPMTable) -> float:
    """Largest |timestep_of(sigma_of(t)) − t| over whole and half timesteps."""
    timesteps = torch.arange(0, len(table.sigmas) - 1, 0.5, dtype=torch.float64)
    return float((table.timestep_of(table.sigma_of(timesteps)) - timesteps).abs().max())


def _drawn(seed: int, timestep: int, part: int) -> Latents:
    return draw_noise((1, *SHAPE), generator_for(seed, timestep, part)).double()


def _apart(found: Latents, exact: Latents) -> float:
    """Largest difference over the root mean square of the exact image."""
    return float((found.double() - exact).abs().max() / exact.square().mean().sqrt())
