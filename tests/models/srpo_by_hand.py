"""One SRPO update written out a second time for real networks: take the step, subtract the known
noise, swap the prompts.

The network, the table of levels and the decoder come from the caller, who takes them from the
library, not from us.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from directalign.config import SRPOConfig as Settings
from directalign.diffusion import noise_levels, rng
from directalign.diffusion.rng import NOISE, NOISE_LEVEL
from directalign.types import Batch
from methods.toy import ToyReward

PROMPTS = ["a red star", "a blue circle on a sandy background"]
BATCH = Batch(step=2, prompts=tuple(PROMPTS), seed=5)
RAMPS = {
    "denoise": {"k_pos": {"low_noise": 0.1, "high_noise": 0.25}},
    "inversion": {"k_neg": {"low_noise": 0.3, "high_noise": 0.01}},
}
TRAINING_CFG = 2.0
MARGIN = 3.0
"""Wide enough that no loss is cut off at 0."""
SETTINGS = Settings.model_validate(
    {
        "control_phrases": {"positive": ["photo"], "negative": ["painting"]},
        "branches": "both",
        "margin": MARGIN,
        "cfg_scale": TRAINING_CFG,
        **RAMPS,
    }
)


def known_noise(shape: tuple[int, int, int]) -> Tensor:
    """The noise that the update's rollout begins with, for latents of `shape` (c, h, w)."""
    return rng.draw_noise((len(PROMPTS), *shape), rng.update_generator(BATCH, NOISE))


def losses_by_hand(
    path: str,
    predict: Callable[[Tensor, Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    x0: Tensor,
    noise: Tensor,
    prediction: str = "velocity",
) -> list[Tensor]:
    """The losses of the denoise and of the inversion branch; `predict(x_t, sigma)` is the guided
    network, `decode` the VAE before its clamp.
    """
    window, reward = noise_levels.GridSampler(), ToyReward()
    landing = window.draw(len(x0), rng.update_generator(BATCH, NOISE_LEVEL))
    found = []
    for own, other, move, (low, high) in (
        ("photo", "painting", window.denoise(landing), (0.1, 0.25)),
        ("painting", "photo", window.inversion(landing), (0.3, 0.01)),
    ):
        start, end = (sigma[:, None, None, None] for sigma in (move.sigma_from, move.sigma_to))
        x_t = (_alpha(path, start) * x0 + start * noise).float()
        x0_hat, noise_hat = _split(prediction, x_t, predict(x_t, move.sigma_from), start)
        x_to = _alpha(path, end) * x0_hat + end * noise_hat
        images = decode(((x_to - end * noise) / _alpha(path, end)).float()).clamp(0, 1)
        asked, unasked = (
            reward.score(images.mean((2, 3)), [f"{word}. {prompt}" for prompt in PROMPTS])
            for word in (own, other)
        )
        k = low + (high - low) * move.position
        found.append(torch.relu(MARGIN - ((1 + k) * asked - unasked)).mean() / 2)
    return found


def _alpha(path: str, sigma: Tensor) -> Tensor:
    return 1 - sigma if path == "flow" else (1 - sigma**2).sqrt()


def _split(prediction: str, x_t: Tensor, pred: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """What the network takes for signal and for noise."""
    if prediction == "velocity":
        return x_t - sigma * pred, x_t + (1 - sigma) * pred
    alpha = _alpha("vp", sigma)
    if prediction == "epsilon":
        return (x_t - sigma * pred) / alpha, pred
    return alpha * x_t - sigma * pred, sigma * x_t + alpha * pred
