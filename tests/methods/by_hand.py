"""Sampling and the absolute reward written out a second time, from the formulas alone, to check the
direct-gradient methods against."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from directalign.config import RolloutConfig
from directalign.diffusion.rng import NOISE, draw_noise, generator_for
from directalign.interfaces import Method
from directalign.types import Batch
from methods.toy import ToyFamily, ToyReward

CASES = [("flow", "velocity"), ("vp", "epsilon"), ("vp", "v")]
PROMPTS = ("a red star", "a blue ring")
WORDS = {"positive": ["Photo", "Real"], "negative": ["Render"]}
GUIDANCE = 1.0
ROLLOUT = RolloutConfig(num_inference_steps=4, embedded_guidance=GUIDANCE)


def levels(family: ToyFamily, num_inference_steps: int = 4) -> list[float]:
    return family.sigmas(num_inference_steps, 4, 4).tolist()


def batch_noise(batch: Batch) -> Tensor:
    """The noise that the rollout of a batch begins with."""
    return draw_noise((2, 4, 4, 4), generator_for(batch.seed, NOISE, batch.step, 0, 0, 0)).double()


def split(family: ToyFamily, x_t: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """What the network takes for signal and for noise."""
    pred, alpha = (
        family.denoiser(x_t, torch.full((len(x_t),), sigma, dtype=torch.float64), GUIDANCE),
        (1 - sigma**2) ** 0.5,
    )
    if family.prediction == "velocity":
        return x_t - sigma * pred, x_t + (1 - sigma) * pred
    if family.prediction == "epsilon":
        return (x_t - sigma * pred) / alpha, pred
    return alpha * x_t - sigma * pred, sigma * x_t + alpha * pred


def walk(family: ToyFamily, x_t: Tensor, sigmas: list[float]) -> Tensor:
    """Euler on a flow, DDIM on VP, from the first of `sigmas` to the last."""
    for high, low in pairwise(sigmas):
        x0_hat, noise_hat = split(family, x_t, high)
        x_t = (1 - low if family.path == "flow" else (1 - low**2) ** 0.5) * x0_hat + low * noise_hat
    return x_t


def images_of(family: ToyFamily, x0: Tensor) -> Tensor:
    return (torch.einsum("oc,bchw->bohw", family.to_rgb, x0) + 0.5).clamp(0, 1)


def absolute_loss(family: ToyFamily, x0: Tensor) -> Tensor:
    """Minus the mean score of the bare prompts."""
    directions = torch.stack([ToyReward().direction(prompt) for prompt in PROMPTS])
    return -(images_of(family, x0).mean((2, 3)) * directions).sum(1).mean()


def numerical_gradient(
    family: ToyFamily, value: Callable[[], Tensor], delta: float = 1e-5
) -> Tensor:
    """Central differences over every weight of the denoiser."""
    found = []
    with torch.no_grad():
        for entry in (
            weights.view(-1)[i : i + 1]
            for weights in family.denoiser.parameters()
            for i in range(weights.numel())
        ):
            kept = entry.clone()
            above, below = (
                value_at(entry, kept + delta, value),
                value_at(entry, kept - delta, value),
            )
            entry.copy_(kept)
            found.append((above - below) / (2 * delta))
    return torch.stack(found)


def value_at(entry: Tensor, setting: Tensor, value: Callable[[], Tensor]) -> Tensor:
    entry.copy_(setting)
    return value()


def gradient(family: ToyFamily, loss: Tensor) -> Tensor:
    """The gradient of a loss with its graph, over every weight of the denoiser."""
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(family.denoiser.parameters()))]
    )


def gradients(method: Method, family: ToyFamily, batch: Batch) -> list[Tensor]:
    """The gradient of each loss that the method yields."""
    return [gradient(family, loss.value) for loss in method.losses(batch)]


def watch_gradients(family: ToyFamily) -> list[bool]:
    """Fills up, call by call, with whether the network's answer carried a graph."""
    seen: list[bool] = []
    family.denoiser.register_forward_hook(
        lambda module, given, output: seen.append(output.requires_grad)
    )
    return seen


def maximised(
    reward: ToyReward,
    images: Tensor,
    form: str,
    reference: float | None = None,
    tolerance: float = 0.05,
) -> Tensor:
    """What each form maximises on the first update, with `WORDS`: (b,). Without a `reference` it is
    this batch's own mean."""
    pos, neg, plain = (
        reward.score(images.mean((2, 3)), [f"{before}{prompt}" for prompt in PROMPTS])
        for before in ("Photo. ", "Render. ", "")
    )
    if form == "absolute":
        return pos
    if form == "relative":
        return pos - neg
    return (
        pos
        - neg
        - (plain - (plain.mean() if reference is None else reference)) ** 2 / (2 * tolerance)
    )
