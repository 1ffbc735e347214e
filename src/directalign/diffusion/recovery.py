"""Direct-Align in one line, and the place to start reading.

Put noise that is *known* into a clean image, ask the network once, take one step from `sigma_from` to `sigma_to`, and
subtract the known noise that is left: x0 = (x_to − sigma_to·noise) / alpha_to. On every path and for every
parametrisation this is exactly

    recovered = x0 + gain · (target − pred)

where `target` is what a perfect network would have said. The reward thus sees the clean image plus a small signed
multiple of the network's own error, and the gradient is one Jacobian times a number. docs/method.md derives it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Latents, Noised, PathName, PerSample, PredictionName, Recovered
from .path import alpha, determinant, per_sample, target


def inject(path: PathName, x0: Latents, noise: Latents, sigma: PerSample) -> Noised:
    """x_t = alpha(sigma)·x0 + sigma·noise (the injection of arXiv 2509.06942), at one level in [0, 1] per sample."""
    x_t = per_sample(alpha(path, sigma), x0) * x0 + per_sample(sigma, noise) * noise
    return Noised(x_t, x0, noise, sigma)


def gain(path: PathName, prediction: PredictionName, sigma_from: Tensor, sigma_to: Tensor) -> Tensor:
    """How much of the network's residual reaches the recovered image; finite wherever alpha(sigma_to) > 0.

    Positive when the step removes noise, negative when it adds noise, whatever the network predicts:

        flow, velocity    (sigma_from − sigma_to) / (1 − sigma_to)
        vp, v             (sigma_from·alpha_to − sigma_to·alpha_from) / alpha_to
        epsilon           sigma_from/alpha_from − sigma_to/alpha_to            (needs alpha(sigma_from) > 0 too)
    """
    alpha_from, alpha_to = alpha(path, sigma_from), alpha(path, sigma_to)
    crossed = sigma_from * alpha_to - sigma_to * alpha_from
    return crossed / (alpha_to * determinant(path, prediction, sigma_from).abs())


def recover(path: PathName, prediction: PredictionName, noised: Noised, pred: Latents, sigma_to: PerSample) -> Recovered:
    """Direct-Align's image after a step from `noised.sigma` to `sigma_to`; gradient through `pred` alone."""
    residual = target(path, prediction, noised.x0, noised.noise, noised.sigma) - pred
    if prediction == "x0":
        residual = -residual  # x0 is what noise is not: turned, a positive gain leads toward the network's own guess here too
    step_gain = gain(path, prediction, noised.sigma, sigma_to)
    return Recovered(noised.x0 + per_sample(step_gain, pred) * residual, step_gain, residual.detach())


def direction(gain: PerSample) -> PerSample:
    """Which way a branch moves the image, and so the reward's sign: +1 where noise was removed, −1 where it was added."""
    return torch.sign(gain)
