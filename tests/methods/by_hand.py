"""Sampling and rewards written out a second time, from the formulas alone, in float64."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from directalign.config import MethodConfig, RolloutConfig
from directalign.device import to_host
from directalign.diffusion.rng import NOISE, draw_noise, generator_for
from directalign.methods import method_class
from directalign.types import Batch, LossTerm
from methods.toy import ToyFamily, ToyReward

CASES = [("flow", "velocity"), ("vp", "epsilon"), ("vp", "v")]
PROMPTS = ("a red star", "a blue ring")
PHRASES = {"positive": ["Photo", "Real"], "negative": ["Render"]}
DIRECT = ["srpo", "refl", "draft", "alignprop", "drtune", "leapalign", "flowbp"]
METHODS = [*DIRECT, "flow_grpo", "raft", "diffusion_nft", "awm"]
"""Those that differentiate the reward; these and those that only rank or weigh by it."""
GUIDANCE = 1.0
ROLLOUT = RolloutConfig(num_inference_steps=4, embedded_guidance=GUIDANCE)


def make(
    name: str,
    family: ToyFamily | None = None,
    reward: ToyReward | None = None,
    rollout: RolloutConfig = ROLLOUT,
    **settings: Any,
) -> Any:
    """A method by its name, on the toy model and reward."""
    chosen = TypeAdapter(MethodConfig).validate_python({"name": name, **settings})
    return method_class(name)(family or ToyFamily(), reward or ToyReward(), chosen, rollout)


def levels(family: ToyFamily, num_inference_steps: int = 4) -> list[float]:
    return family.sigmas(num_inference_steps, 4, 4).tolist()


def batch_noise(batch: Batch) -> Tensor:
    """The noise that the rollout of a batch begins with."""
    return draw_noise((2, 4, 4, 4), generator_for(batch.seed, NOISE, batch.step, 0, 0, 0)).double()


def predict(family: ToyFamily, x_t: Tensor, sigma: float) -> Tensor:
    return family.denoiser(x_t, torch.full((len(x_t),), sigma, dtype=torch.float64), GUIDANCE)


def take(family: ToyFamily, x_t: Tensor, pred: Tensor, high: float, low: float) -> Tensor:
    """From one level to another with a given prediction; `low` 0 gives x0_hat."""
    if family.path == "flow":
        return x_t + (low - high) * pred
    alpha_high, alpha_low = (1 - high**2) ** 0.5, (1 - low**2) ** 0.5
    if family.prediction == "epsilon":
        return alpha_low * (x_t - high * pred) / alpha_high + low * pred
    return alpha_low * (alpha_high * x_t - high * pred) + low * (high * x_t + alpha_high * pred)


def walk(family: ToyFamily, x_t: Tensor, sigmas: list[float]) -> Tensor:
    """Euler on a flow, DDIM on VP, from the first of `sigmas` to the last."""
    for high, low in pairwise(sigmas):
        x_t = take(family, x_t, predict(family, x_t, high), high, low)
    return x_t


def walk_cut(
    family: ToyFamily, x_t: Tensor, sigmas: list[float], factors: Mapping[int, float]
) -> Tensor:
    """The same values; each input is detached, and so is each prediction without a factor.

    The gradient through the other predictions is multiplied by their factors.
    """
    for index, (high, low) in enumerate(pairwise(sigmas)):
        pred = predict(family, x_t.detach(), high)
        pred = pred.detach() + factors.get(index, 0.0) * (pred - pred.detach())
        x_t = take(family, x_t, pred, high, low)
    return x_t


@torch.no_grad()
def states(family: ToyFamily, batch: Batch) -> list[Tensor]:
    """The sampled path, from the noise to x0."""
    found, sigmas = [batch_noise(batch)], levels(family)
    for index in range(4):
        found.append(walk(family, found[-1], sigmas[index : index + 2]))
    return found


def images_of(family: ToyFamily, x0: Tensor) -> Tensor:
    return (torch.einsum("oc,bchw->bohw", family.to_rgb, x0) + 0.5).clamp(0, 1)


def absolute_loss(family: ToyFamily, x0: Tensor) -> Tensor:
    """Minus the mean score of the bare prompts."""
    return -ToyReward().score(images_of(family, x0).mean((2, 3)), PROMPTS).mean()


def maximised(images: Tensor, form: str, step: int, tolerance: float = 0.05) -> Tensor:
    """What each form maximises on the first update, with `PHRASES`: (b,)."""
    phrase = PHRASES["positive"][step % 2]
    pos, neg, plain = (
        ToyReward().score(images.mean((2, 3)), [f"{before}{prompt}" for prompt in PROMPTS])
        for before in (f"{phrase}. ", "Render. ", "")
    )
    if form == "absolute":
        return pos
    anchor = (plain - plain.detach().mean()) ** 2 / (2 * tolerance)
    return pos - neg - (anchor if form == "anchored" else 0)


@torch.no_grad()
def numerical_gradient(
    family: ToyFamily, value: Callable[[], Tensor], delta: float = 1e-5
) -> Tensor:
    """Central differences over every weight of the denoiser."""
    found = []
    for weights in family.denoiser.parameters():
        for entry in weights.view(-1):
            before, ends = entry.clone(), []
            for sign in (1, -1):
                entry.copy_(before + sign * delta)
                ends.append(value())
            entry.copy_(before)
            found.append((ends[0] - ends[1]) / (2 * delta))
    return torch.stack(found)


def gradient(family: ToyFamily, loss: Tensor) -> Tensor:
    """The gradient of a loss with its graph, over every weight of the denoiser."""
    grads = torch.autograd.grad(loss, list(family.denoiser.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def gradients(method: Any, batch: Batch) -> list[Tensor]:
    """The gradient of each loss that the method yields."""
    return [gradient(method.model, loss.value) for loss in method.losses(batch)]


def read(losses: Iterable[LossTerm]) -> Iterator[LossTerm]:
    """The losses of a method, with numbers in what they log, as a step reads it."""
    for loss in losses:
        metrics, levels = to_host((dict(loss.metrics), dict(loss.levels)))
        yield replace(loss, metrics=metrics, levels=levels)


def watch_gradients(family: ToyFamily) -> list[bool]:
    """Filled call by call with whether the network's prediction has a graph."""
    found: list[bool] = []
    family.denoiser.register_forward_hook(
        lambda module, given, output: found.append(output.requires_grad)
    )
    return found
