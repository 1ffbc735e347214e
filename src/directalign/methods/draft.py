"""DRaFT (arXiv 2309.17400, algorithm 1): the reward's gradient through the last K steps.

The paper: DRaFT-K cuts the chain before its last K steps; DRaFT-LV takes K = 1, adds noise to the
sample n − 1 more times up to the last level, and sums the gradients of all n last steps for a lower
variance. Here: both, for every path and prediction type. The n losses are averaged, so their size
does not depend on n, and are yielded one by one, so memory is that of one. Left out: the full chain
with checkpointing (see AlignProp) and the mixing of LoRA scales after training.

What LV estimates: its first loss is that of K = 1. The others are, given the sample x0, independent
draws of the last step at alpha·x0 + sigma·noise; they equal K = 1 in expectation as far as the
sampler's own last state has that distribution. On a rollout of one step from pure noise this is
exact: the n losses are n independent draws of K = 1.
"""

from collections.abc import Iterator
from dataclasses import replace

from ..device import to_device, to_like
from ..diffusion.recovery import inject
from ..diffusion.rng import FRESH_NOISE, batch_noise
from ..diffusion.sampling import RolloutStart, predict_x0, sample
from ..types import Batch, Latents, LossTerm
from .objective import ObjectiveMethod


class DRaFT(ObjectiveMethod):
    """`losses(batch)` yields the loss of the sample, then one per renoised copy."""

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0 with the gradient of its last steps; yield; then yield renoised copies."""
        start = self.start(batch)
        x0 = sample(self.model, start.cond, start.noise, start.sigmas, self.settings.grad_steps)
        yield self._loss(x0, batch, "sampled")

        x0 = x0.detach()
        for index in range(1, self.settings.lv_samples):
            yield self._loss(self._redenoised(x0, start, batch, index), batch, "noised_anew")
        yield from self.kl_losses(batch, x0, start.cond)

    def _redenoised(self, x0: Latents, start: RolloutStart, batch: Batch, index: int) -> Latents:
        """Renoise the sample to the last level with draw `index`; denoise it with gradient."""
        noise = to_like(batch_noise(batch, FRESH_NOISE, tuple(x0.shape), index=index), x0)
        sigma = to_device(start.sigmas[-2].expand(len(x0)), x0.device)
        x_t = inject(self.model.path, x0, noise, sigma).x_t
        return predict_x0(self.model, start.cond, x_t, sigma)

    def _loss(self, x0: Latents, batch: Batch, branch: str) -> LossTerm:
        loss = self.image_loss(x0, batch, branch)
        return replace(loss, value=loss.value / self.settings.lv_samples)
