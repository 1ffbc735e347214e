"""DiffusionNFT (arXiv 2509.16117): negative-aware fine-tuning on the forward process.

The paper: an old policy samples a group of images for each prompt, with any sampler; the reward,
normalised within the group, becomes the probability r that an image is optimal. At the noised image
two implicit policies are fitted to its target, v+ = (1 − beta)·v_old + beta·v by r and
v− = (1 + beta)·v_old − beta·v by 1 − r: loss = r·|v+ − target|² + (1 − r)·|v− − target|². The old
policy follows the trained one by a soft update. Here, as in the released code: r = ½ + ½·A/clip of
the clipped advantage A, both squares in x0 divided by the mean absolute error of their own x0
(without gradient), the whole times clip/beta, so that the gradient at v = v_old weighs by A and
does not depend on beta. `kl_beta` is the velocity-space KL to the base (released: 1e-4). Left out:
several updates per set of samples (each makes its own), an old policy that stays on-policy for some
first updates, evaluation on a second average (`train.ema_decay` is one).
"""

import torch

from ..types import Latents, Noised, PerSample
from .forward_process import ForwardProcessMethod

SMALLEST_ERROR = 1e-5
"""Below it the weight of a sample no longer grows (released)."""


class DiffusionNFT(ForwardProcessMethod):
    """The contrast of two implicit policies, weighted by the optimality of each sample."""

    def policy_loss(
        self, noised: Noised, pred: Latents, old: Latents, advantage: PerSample
    ) -> tuple[PerSample, dict[str, PerSample]]:
        beta, clip = self.settings.beta, self.settings.advantage_clip
        change = beta * (pred - old)
        optimality = 0.5 + 0.5 * advantage / clip
        positive = self._weighted(self.to_x0(old + change, noised), noised.x0)
        negative = self._weighted(self.to_x0(old - change, noised), noised.x0)
        loss = (clip / beta) * (optimality * positive + (1 - optimality) * negative)
        return loss, {"positive": positive, "negative": negative}

    @staticmethod
    def _weighted(predicted: Latents, x0: Latents) -> PerSample:
        """Mean squared error (b,), divided by the mean absolute error without its gradient."""
        error = predicted - x0
        scale = error.detach().abs().mean((1, 2, 3)).clamp(min=SMALLEST_ERROR)
        return torch.square(error).mean((1, 2, 3)) / scale
