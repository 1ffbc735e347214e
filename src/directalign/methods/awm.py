"""AWM, advantage weighted matching (arXiv 2509.25050): a policy gradient of the pre-training loss.

The paper: minus the flow-matching loss at the noised sample is a lower-variance stand-in for the
log-probability of the sample, so each sample of a prompt's group pulls by its advantage with the
loss that the model was pre-trained with. Here, as in the released code: the log-probability l is
minus the squared error of the prediction, weighted by the noise level and by default flattened by
a power (`weighting`); ratio = exp(l − l_old) with the old policy's l at the same noised sample;
PPO's clipped loss with the advantage over its clip; a velocity-space KL to the base (`kl_beta`,
released: 0.001) and one to the old policy (`old_kl_beta`). The old policy follows the weights by a
soft update, samples and has the ratio's denominator, which is their `off_policy`; `old_decay: 0` is
on-policy. Left out: several updates per set of samples, noise levels that all samples share and
that are stratified over the injections.
"""

from torch import Tensor

from ..device import to_like
from ..diffusion import path, sde
from ..types import Latents, Noised, PerSample
from .forward_process import ForwardProcessMethod
from .objective_math import velocity_kl

SMALLEST_SQUARE = 1e-10
"""Added below the power, whose slope at 0 has no end (released)."""


class AWM(ForwardProcessMethod):
    """The clipped ratio of weighted matching losses, times the advantage."""

    def policy_loss(
        self, noised: Noised, pred: Latents, old: Latents, advantage: PerSample
    ) -> tuple[PerSample, dict[str, PerSample]]:
        settings, model, sigma = self.settings, self.model, noised.sigma
        target = path.target(model.path, model.prediction, noised.x0, noised.noise, sigma)
        log_prob, before = (self._log_prob(each, target, sigma) for each in (pred, old))
        ratio = (log_prob - before).exp()
        weight = advantage / settings.advantage_clip
        loss = sde.clipped_loss(ratio, weight, settings.clip_range)
        loss = loss + settings.old_kl_beta * velocity_kl(pred, old)
        outside = ((ratio - 1).abs() > settings.clip_range).to(ratio)
        return loss, {"ratio": ratio, "clip_fraction": outside}

    def _log_prob(self, pred: Latents, target: Latents, sigma: Tensor) -> PerSample:
        square = ((pred - target) ** 2).mean((1, 2, 3))
        if self.settings.weighting == "uniform":
            return -square
        if self.settings.weighting == "ghuber":
            power = self.settings.huber_power
            square = ((square + SMALLEST_SQUARE) ** power - SMALLEST_SQUARE**power) / power
        return -to_like(sigma, square) * square
