"""Direct-Align in one line, and the place to start reading (arXiv 2509.06942, section 3).

Add *known* noise to a clean image, call the network once, take one step from `sigma_from` to
`sigma_to`, and subtract the known noise that is left: x0 = (x_to − sigma_to·noise) / alpha_to. For
every path and prediction type this equals

    recovered = x0 + gain · (target − pred)

where `target` is the prediction of a perfect network. The reward sees the clean image plus a small
signed multiple of the network's own error, and the gradient is one Jacobian times a number.
docs/method.md derives it.
"""

import torch
from torch import Tensor

from ..types import Latents, Noised, PathName, PerSample, PredictionName, Recovered
from .path import alpha, determinant, expand_like, target


def inject(path: PathName, x0: Latents, noise: Latents, sigma: PerSample) -> Noised:
    """x_t = alpha(sigma)·x0 + sigma·noise, at one level in [0, 1] per sample."""
    x_t = expand_like(alpha(path, sigma), x0) * x0 + expand_like(sigma, noise) * noise
    return Noised(x_t, x0, noise, sigma)


def gain(
    path: PathName, prediction: PredictionName, sigma_from: Tensor, sigma_to: Tensor
) -> Tensor:
    """Factor of the network's residual in the recovered image; finite where alpha(sigma_to) > 0.

    Positive when the step removes noise, negative when it adds noise, for every prediction type:

        flow, velocity    (sigma_from − sigma_to) / (1 − sigma_to)
        vp, v             (sigma_from·alpha_to − sigma_to·alpha_from) / alpha_to
        epsilon           sigma_from/alpha_from − sigma_to/alpha_to    (alpha(sigma_from) > 0)
    """
    alpha_from, alpha_to = alpha(path, sigma_from), alpha(path, sigma_to)
    cross = sigma_from * alpha_to - sigma_to * alpha_from
    return cross / (alpha_to * determinant(path, prediction, sigma_from))


def recover(
    path: PathName, prediction: PredictionName, noised: Noised, pred: Latents, sigma_to: PerSample
) -> Recovered:
    """The recovered latents after a step to `sigma_to`; gradient through `pred` only."""
    residual = target(path, prediction, noised.x0, noised.noise, noised.sigma) - pred
    step_gain = gain(path, prediction, noised.sigma, sigma_to)
    recovered = noised.x0 + expand_like(step_gain, pred) * residual
    return Recovered(recovered, step_gain, residual.detach())


def direction(gain: PerSample) -> PerSample:
    """Sign of the reward for a branch: +1 where noise was removed, −1 where it was added."""
    return torch.sign(gain)
