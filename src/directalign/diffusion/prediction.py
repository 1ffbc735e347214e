"""What a network may say about x_t, and how to read it.

Every parametrisation is a sum of two terms, target = of_noise·noise + of_x0·x0, next to the path's own two,
x_t = sigma·noise + alpha·x0. Two equations in two unknowns: `determinant` is theirs, and all conversions follow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Latents, PathName, PerSample, PredictionName
from .path import alpha, per_sample


def coefficients(path: PathName, prediction: PredictionName, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(of_noise, of_x0) of what a perfect network says at level `sigma`."""
    one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
    if prediction == "velocity":
        return one, -one
    if prediction == "epsilon":
        return one, zero
    if prediction == "v":
        return alpha(path, sigma), -sigma
    return zero, one


def determinant(path: PathName, prediction: PredictionName, sigma: Tensor) -> Tensor:
    """alpha·of_noise − sigma·of_x0: 1 for velocity on flow and for v on vp, alpha for epsilon, −sigma for x0."""
    of_noise, of_x0 = coefficients(path, prediction, sigma)
    return alpha(path, sigma) * of_noise - sigma * of_x0


def target(path: PathName, prediction: PredictionName, x0: Latents, noise: Latents, sigma: PerSample) -> Latents:
    """What a perfect network says at x_t = alpha·x0 + sigma·noise."""
    of_noise, of_x0 = coefficients(path, prediction, sigma)
    return per_sample(of_noise, noise) * noise + per_sample(of_x0, x0) * x0


def to_x0(path: PathName, prediction: PredictionName, pred: Latents, x_t: Latents, sigma: PerSample) -> Latents:
    """One-step guess x0_hat of the clean latents; epsilon cannot give it at alpha = 0."""
    of_noise, _ = coefficients(path, prediction, sigma)
    scale = 1 / determinant(path, prediction, sigma)
    return per_sample(of_noise * scale, x_t) * x_t - per_sample(sigma * scale, pred) * pred


def to_noise(path: PathName, prediction: PredictionName, pred: Latents, x_t: Latents, sigma: PerSample) -> Latents:
    """The noise that the network believes is in x_t; x0 cannot give it at sigma = 0."""
    _, of_x0 = coefficients(path, prediction, sigma)
    scale = 1 / determinant(path, prediction, sigma)
    return per_sample(alpha(path, sigma) * scale, pred) * pred - per_sample(of_x0 * scale, x_t) * x_t


def convert(path: PathName, pred: Latents, x_t: Latents, sigma: PerSample, source: PredictionName, to: PredictionName) -> Latents:
    """The same statement about x_t in another parametrisation."""
    if source == to:
        return pred
    x0_hat, noise_hat = to_x0(path, source, pred, x_t, sigma), to_noise(path, source, pred, x_t, sigma)
    return target(path, to, x0_hat, noise_hat, sigma)


def classifier_free(cond: Latents, uncond: Latents, scale: float) -> Latents:
    """Classifier-free guidance uncond + scale·(cond − uncond), in whatever parametrisation both are (arXiv 2207.12598)."""
    return uncond + scale * (cond - uncond)
