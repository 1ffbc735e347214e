"""The two noise paths x_t = alpha·x0 + sigma·noise, their sampling grids, and the DDPM table.

`sigma` is the coefficient of the noise on both: "flow" has alpha = 1 − sigma, "vp" has alpha² + sigma² = 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..types import DirectAlignError, Latents, PathName, PerSample, PredictionName


def alpha(path: PathName, sigma: Tensor) -> Tensor:
    """Coefficient of the signal at noise level `sigma` in [0, 1], any shape."""
    if path == "flow":
        return 1 - sigma
    return ((1 - sigma) * (1 + sigma)).sqrt()


def per_sample(scalars: Float[Tensor, " b"], like: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """(b,) numbers with the type, device and rank of `like`, ready to multiply it."""
    return scalars.to(like).view(-1, *[1] * (like.ndim - 1))


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Move levels in [0, 1] toward the noisy end: s' = shift·s / (1 + (shift − 1)·s); both ends stay."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_sigmas(num_sampling_steps: int, shift: float = 1.0) -> Float64[Tensor, " levels"]:
    """Sampling grid of `num_sampling_steps` + 1 levels, falling from 1 to 0."""
    return shifted(torch.linspace(1, 0, num_sampling_steps + 1, dtype=torch.float64), shift)


def truncated(sigma: Float[Tensor, " b"], resolution: int) -> Float64[Tensor, " b"]:
    """What a network trained on whole timesteps is shown: int(resolution·sigma) / resolution.

    The product is taken in float32, so that a level that stands on a whole timestep stays there.
    """
    return (sigma.float() * resolution).floor().double() / resolution


class DdpmTable:
    """A DDPM's discrete timesteps and our continuous sigma, each the piecewise-linear inverse of the other.

    Timesteps run from 0 to len(alphas_cumprod) − 1 and may be fractional; what lies beyond the table takes its end.
    """

    def __init__(self, alphas_cumprod: Float[Tensor, " timesteps"]) -> None:
        """`alphas_cumprod`: alpha² at every timestep, strictly falling."""
        self.sigmas = (1 - alphas_cumprod.detach().cpu().double()).sqrt()
        if not (self.sigmas.diff() > 0).all():
            raise DirectAlignError("alphas_cumprod does not fall at every timestep: use the table of a DDPM scheduler, as its own scheduler gives it")

    def sigma_of(self, timestep: Tensor) -> Float64[Tensor, " b"]:
        """Noise level of (fractional) timesteps (b,)."""
        timestep = timestep.cpu().double().clamp(0, len(self.sigmas) - 1)
        below = timestep.floor().long().clamp(max=len(self.sigmas) - 2)
        return torch.lerp(self.sigmas[below], self.sigmas[below + 1], timestep - below)

    def timestep_of(self, sigma: Float[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Fractional timestep of noise levels (b,)."""
        sigma = sigma.cpu().double().clamp(self.sigmas[0], self.sigmas[-1])
        below = (torch.searchsorted(self.sigmas, sigma, right=True) - 1).clamp(max=len(self.sigmas) - 2)
        low, high = self.sigmas[below], self.sigmas[below + 1]
        return below + (sigma - low) / (high - low)


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
