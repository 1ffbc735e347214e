"""DRTune (arXiv 2405.00760): a few spread steps train, without gradient through network inputs.

The paper: stop the gradient at the denoiser's input, so that the reward reaches early steps along
the chain of samples only, where nothing multiplies up; train K equally spaced steps; stop sampling
early at random and score the one-step estimate there. Here: the same for every path and prediction
type, one draw of the stop and of the first trained step for the whole batch, the K steps spread
over those before the stop so that all of them count. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..config import DRTuneConfig, RolloutConfig
from ..diffusion.rng import STEPS, update_generator
from ..diffusion.sampling import RolloutStart, linear_step, start_rollout
from ..interfaces import Model, Reward
from ..types import Batch, DirectAlignError, Latents, LossTerm
from .objective import ObjectiveMethod


class DRTune(ObjectiveMethod):
    """`losses(batch)` yields one loss, with the gradient of K network calls.

    Raises DirectAlignError where an early stop could leave fewer than K steps.
    """

    def __init__(
        self, model: Model, reward: Reward, settings: DRTuneConfig, rollout: RolloutConfig
    ) -> None:
        self.check(settings, rollout, model.path)
        super().__init__(model, reward, settings, rollout)

    @staticmethod
    def check(settings: DRTuneConfig, rollout: RolloutConfig, path: str) -> None:
        """Refuse more trained steps than the earliest stop leaves."""
        fewest = rollout.num_inference_steps + 1 - settings.early_stop
        if settings.trained_steps > fewest:
            raise DirectAlignError(
                f"method.trained_steps {settings.trained_steps} does not fit: with "
                f"method.early_stop {settings.early_stop} a rollout of rollout.num_inference_steps "
                f"{rollout.num_inference_steps} may end after {fewest}; lower one of the first "
                "two, or sample in more steps"
            )

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Sample to the stop, some steps with gradient; predict x0_hat there; reward; yield."""
        start, (stop, trained) = start_rollout(self.model, self.rollout, batch), self.steps(batch)
        # from the stop, one step to sigma 0 gives x0_hat
        sigmas = torch.cat([start.sigmas[: stop + 1], torch.zeros_like(start.sigmas[:1])])
        x0_hat = self._chain(start, sigmas, trained)
        yield self.image_loss(x0_hat, batch, "chain", start.sigmas[stop].expand(len(x0_hat)))

    def steps(self, batch: Batch) -> tuple[int, range]:
        """(stop, trained): the step whose estimate is scored, K trained ones in 0, ..., stop.

        The stop is uniform over the last `early_stop` steps. The trained steps are ⌊(stop + 1) / K⌋
        apart, the first drawn uniformly from where they all fit.
        """
        generator, count = update_generator(batch, STEPS), self.settings.trained_steps
        back = torch.randint(1, self.settings.early_stop + 1, (), generator=generator)
        stop = self.rollout.num_inference_steps - int(back)
        spacing = (stop + 1) // count
        span = (count - 1) * spacing + 1
        first = int(torch.randint(stop + 2 - span, (), generator=generator))
        return stop, range(first, first + span, spacing)

    def _chain(self, start: RolloutStart, sigmas: Tensor, trained: range) -> Latents:
        """The last state along `sigmas`; its graph has no input of a network call."""
        model, x_t = self.model, start.noise
        for index, (sigma_from, sigma_to) in enumerate(pairwise(sigmas.to(x_t.device))):
            levels = sigma_from.expand(len(x_t)), sigma_to.expand(len(x_t))
            with torch.set_grad_enabled(index in trained):
                pred = model.predict(x_t.detach(), levels[0], start.cond)
            x_t = linear_step(model.path, model.prediction, x_t, pred, *levels)
        return x_t
