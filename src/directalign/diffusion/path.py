"""The noise paths x_t = alpha·x0 + sigma·noise, what a network predicts on them, the DDPM table.

`sigma` is the coefficient of the noise: "flow" has alpha = 1 − sigma, "vp" has alpha² + sigma² = 1.
Every prediction type is a sum of two terms, target = of_noise·noise + of_x0·x0. With x_t that makes
two equations in two unknowns; `determinant` is theirs, and every conversion follows from it.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..device import to_device, to_like, widest
from ..types import DirectAlignError, Latents, PathName, PerSample, PredictionName


def alpha(path: PathName, sigma: Tensor) -> Tensor:
    """Coefficient of the signal at noise level `sigma` in [0, 1], any shape."""
    if path == "flow":
        return 1 - sigma
    return ((1 - sigma) * (1 + sigma)).sqrt()


def expand_like(
    scalars: Float[Tensor, " b"], like: Float[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """(b,) numbers with the dtype, device and rank of `like`, ready to multiply it."""
    return to_like(scalars, like).view(-1, *[1] * (like.ndim - 1))


def shift_sigmas(sigma: Tensor, shift: float) -> Tensor:
    """Levels in [0, 1], shifted to the noisy end: shift·s / (1 + (shift − 1)·s)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_sigmas(num_inference_steps: int, shift: float = 1.0) -> Float64[Tensor, " levels"]:
    """Sampling grid of `num_inference_steps` + 1 levels, falling from 1 to 0."""
    return shift_sigmas(torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64), shift)


def truncate_sigmas(sigma: Float[Tensor, " b"], resolution: int) -> Float64[Tensor, " b"]:
    """int(resolution·sigma) / resolution: the input of a network that is given whole timesteps.

    The product is taken in float32, so a level that equals a whole timestep stays there.
    """
    return (sigma.float() * resolution).floor().to(widest(sigma.device)) / resolution


def target_coefficients(
    path: PathName, prediction: PredictionName, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """(of_noise, of_x0) of a perfect network's prediction at level `sigma`."""
    one = torch.ones_like(sigma)
    if prediction == "velocity":
        return one, -one
    if prediction == "epsilon":
        return one, torch.zeros_like(sigma)
    return alpha(path, sigma), -sigma


def determinant(path: PathName, prediction: PredictionName, sigma: Tensor) -> Tensor:
    """alpha·of_noise − sigma·of_x0 > 0: 1 for velocity on flow and v on vp, alpha for epsilon."""
    of_noise, of_x0 = target_coefficients(path, prediction, sigma)
    return alpha(path, sigma) * of_noise - sigma * of_x0


def target(
    path: PathName, prediction: PredictionName, x0: Latents, noise: Latents, sigma: PerSample
) -> Latents:
    """A perfect network's prediction at x_t = alpha·x0 + sigma·noise."""
    of_noise, of_x0 = target_coefficients(path, prediction, sigma)
    return expand_like(of_noise, noise) * noise + expand_like(of_x0, x0) * x0


def to_x0(
    path: PathName, prediction: PredictionName, pred: Latents, x_t: Latents, sigma: PerSample
) -> Latents:
    """One-step estimate x0_hat of the clean latents; undefined for epsilon at alpha = 0."""
    of_noise, _ = target_coefficients(path, prediction, sigma)
    scale = 1 / determinant(path, prediction, sigma)
    return expand_like(of_noise * scale, x_t) * x_t - expand_like(sigma * scale, pred) * pred


def to_noise(
    path: PathName, prediction: PredictionName, pred: Latents, x_t: Latents, sigma: PerSample
) -> Latents:
    """Estimate of the noise in x_t."""
    _, of_x0 = target_coefficients(path, prediction, sigma)
    scale = 1 / determinant(path, prediction, sigma)
    level = alpha(path, sigma)
    return expand_like(level * scale, pred) * pred - expand_like(of_x0 * scale, x_t) * x_t


def classifier_free_guidance(cond: Latents, uncond: Latents, scale: float) -> Latents:
    """uncond + scale·(cond − uncond), in whatever parametrisation both are (arXiv 2207.12598)."""
    return uncond + scale * (cond - uncond)


class DDPMTable:
    """Maps a DDPM's timesteps to sigma and back, piecewise linearly.

    Timesteps may be fractional, from 0 to len(alphas_cumprod) − 1; values beyond take the end.
    """

    def __init__(self, alphas_cumprod: Float[Tensor, " timesteps"]) -> None:
        """`alphas_cumprod`: alpha² at every timestep, strictly falling."""
        self.sigmas = (1 - alphas_cumprod.detach().cpu().double()).sqrt()
        if not (self.sigmas.diff() > 0).all():
            raise DirectAlignError(
                "alphas_cumprod does not fall at every timestep: use the table of a DDPM scheduler"
            )
        self.copies = {self.sigmas.device: self.sigmas}

    def sigma_of(self, timestep: Tensor) -> Float64[Tensor, " b"]:
        """Noise level of (fractional) timesteps (b,), on their device."""
        sigmas = self._on(timestep.device)
        timestep = timestep.to(sigmas.dtype).clamp(0, len(sigmas) - 1)
        below = timestep.floor().long().clamp(max=len(sigmas) - 2)
        return torch.lerp(sigmas[below], sigmas[below + 1], timestep - below)

    def timestep_of(self, sigma: Float[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Fractional timestep of noise levels (b,), on their device."""
        sigmas = self._on(sigma.device)
        sigma = sigma.to(sigmas.dtype).clamp(sigmas[0], sigmas[-1])
        below = torch.searchsorted(sigmas, sigma, right=True) - 1
        below = below.clamp(max=len(sigmas) - 2)
        low, high = sigmas[below], sigmas[below + 1]
        return below + (sigma - low) / (high - low)

    def _on(self, device: torch.device) -> Float64[Tensor, " timesteps"]:
        """The table, copied to a device once: a lookup there never waits for the device."""
        if device not in self.copies:
            self.copies[device] = to_device(self.sigmas, device)
        return self.copies[device]
