"""A sampling step whose answer is given apart from its input, written out a second time: each test
says itself where a gradient stops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from directalign.diffusion import sampling
from directalign.types import Batch
from methods import by_hand
from methods.by_hand import GUIDANCE
from methods.toy import ToyFamily

EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def float64_from_the_first_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is drawn in float32; the same numbers in float64 make every step of a toy rollout
    exact."""
    drawn = sampling.batch_noise
    monkeypatch.setattr(sampling, "batch_noise", lambda *given: drawn(*given).double())


def answer(family: ToyFamily, x_t: Tensor, sigma: float) -> Tensor:
    """What the network says."""
    return family.denoiser(x_t, torch.full((len(x_t),), sigma, dtype=torch.float64), GUIDANCE)


def take(family: ToyFamily, x_t: Tensor, pred: Tensor, high: float, low: float) -> Tensor:
    """From one level to another, with `pred` for the network's answer."""
    if family.path == "flow":
        return x_t + (low - high) * pred
    alpha_high, alpha_low = (1 - high**2) ** 0.5, (1 - low**2) ** 0.5
    if family.prediction == "epsilon":
        return alpha_low * (x_t - high * pred) / alpha_high + low * pred
    return alpha_low * (alpha_high * x_t - high * pred) + low * (high * x_t + alpha_high * pred)


def states(family: ToyFamily, batch: Batch, num_inference_steps: int = 4) -> list[Tensor]:
    """The sampled path, from the noise to x0."""
    found, sigmas = [by_hand.batch_noise(batch)], by_hand.levels(family, num_inference_steps)
    with torch.no_grad():
        for index in range(num_inference_steps):
            found.append(by_hand.walk(family, found[-1], sigmas[index : index + 2]))
    return found


def walk_cut(family: ToyFamily, x_t: Tensor, sigmas: list[float], kept: dict[int, float]) -> Tensor:
    """Along `sigmas` with every input cut off the graph, and every answer but those of `kept`,
    whose gradient is multiplied."""
    for index in range(len(sigmas) - 1):
        pred = answer(family, x_t.detach(), sigmas[index])
        pred = pred.detach() + kept.get(index, 0.0) * (pred - pred.detach())
        x_t = take(family, x_t, pred, sigmas[index], sigmas[index + 1])
    return x_t
