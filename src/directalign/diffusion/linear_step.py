"""One sampling step as a straight line: x_to = a·x_t + b·pred, Euler on a flow and DDIM (eta 0) on VP alike.

rollout.step writes the same step as signal plus noise. Here the two numbers stand alone, for methods whose gradient
runs along the chain of steps but not through the network's input: d x0 / d pred is then a product of these numbers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Latents, PathName, PerSample, PredictionName
from .path import alpha, per_sample
from .prediction import coefficients, determinant


def step_coefficients(path: PathName, prediction: PredictionName, sigma_from: Tensor, sigma_to: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of the step between two levels of any equal shape, at any distance.

        flow, velocity    a = 1                       b = sigma_to − sigma_from
        vp, epsilon       a = alpha_to / alpha_from   b = sigma_to − sigma_from·alpha_to / alpha_from
        vp, v             the cosine and minus the sine of the angle between the levels

    A step to sigma 0 is the one-step guess x0_hat. Epsilon has no step from alpha = 0, x0 none from sigma = 0.
    """
    of_noise, of_x0 = coefficients(path, prediction, sigma_from)
    alpha_from, alpha_to = alpha(path, sigma_from), alpha(path, sigma_to)
    scale = 1 / determinant(path, prediction, sigma_from)
    return (alpha_to * of_noise - sigma_to * of_x0) * scale, (sigma_to * alpha_from - alpha_to * sigma_from) * scale


def linear_step(path: PathName, prediction: PredictionName, x_t: Latents, pred: Latents, sigma_from: PerSample, sigma_to: PerSample) -> Latents:
    """x_to from x_t and what the network said of it, (b, c, h, w) each; gradient through both as far as they carry one."""
    a, b = step_coefficients(path, prediction, sigma_from, sigma_to)
    return per_sample(a, x_t) * x_t + per_sample(b, pred) * pred


def chain_coefficients(path: PathName, prediction: PredictionName, sigmas: Float[Tensor, " levels"]) -> Float[Tensor, " steps"]:
    """d x_last / d pred of each step along `sigmas`, the network's inputs held: its b times the a of all later steps.

    On a flow these are the steps' own lengths, sigma_to − sigma_from.
    """
    a, b = step_coefficients(path, prediction, sigmas[:-1], sigmas[1:])
    from_here_on = a.flip(0).cumprod(0).flip(0)
    return b * torch.cat([from_here_on[1:], torch.ones_like(a[:1])])
