"""DRTune (arXiv 2405.00760): a few spread sampling steps train, and no gradient flows through a
network's input.

The paper: stop the gradient at the denoiser's input, so that the reward reaches early steps along
the chain of samples alone, where nothing multiplies up; train K equally spaced steps; stop sampling
early at random and score the one-step estimate there. Here: the same for every path and prediction
type, one draw of the stop and of the first trained step for the whole batch, the K steps spread
over those before the stop so that all of them count. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import DRTuneConfig, RolloutConfig
from ..diffusion.rng import STEPS, update_generator
from ..diffusion.sampling import RolloutStart, linear_step, predict, start_rollout
from ..interfaces import Model, Reward
from ..types import Batch, DirectAlignError, Latents, LossTerm
from .objective import build_objective
from .objective_math import hinge


class DRTune:
    """`losses(batch)` yields one loss, with the gradient of K network calls.

    Raises DirectAlignError for a reward without gradient, for one that ignores the prompt where the
    form compares two phrasings, and where an early stop could leave fewer than K steps.
    """

    def __init__(
        self, model: Model, reward: Reward, settings: DRTuneConfig, rollout: RolloutConfig
    ) -> None:
        check_steps(settings, rollout)
        self.model, self.settings, self.rollout = model, settings, rollout
        self.objective = build_objective(reward, settings)

    @staticmethod
    def check(settings: DRTuneConfig, rollout: RolloutConfig, path: str) -> None:
        """Refuse settings that the rollout cannot satisfy, before anything is loaded."""
        check_steps(settings, rollout)

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make the steps down to the stop, some with gradient; predict x0_hat there; reward;
        yield."""
        start, (stop, trained) = start_rollout(self.model, self.rollout, batch), self.steps(batch)
        # from the stop, one step to sigma 0 gives x0_hat
        sigmas = torch.cat([start.sigmas[: stop + 1], torch.zeros_like(start.sigmas[:1])])
        x0_hat = self._chain(start, sigmas, trained)

        output = self.objective(self.model.decode(x0_hat), batch)
        loss = hinge(output.reward, 1.0, self.settings.margin)

        levels = {"sigma": start.sigmas[stop].expand(len(loss)), "reward": output.reward}
        lists = {name: value.detach().double().tolist() for name, value in levels.items()}
        yield LossTerm(loss.mean(), "chain", output.metrics, lists)

    def steps(self, batch: Batch) -> tuple[int, range]:
        """(stop, trained): the step whose estimate is scored, and the K trained ones among 0, ...,
        stop.

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

    def _chain(
        self, start: RolloutStart, sigmas: Float[Tensor, " levels"], trained: range
    ) -> Latents:
        """The last state along `sigmas`; the graph joins the trained predictions through the
        sampler's coefficients alone."""
        model, x_t = self.model, start.noise
        for index, (sigma_from, sigma_to) in enumerate(pairwise(sigmas.to(x_t.device))):
            levels = sigma_from.expand(len(x_t)), sigma_to.expand(len(x_t))
            with torch.set_grad_enabled(index in trained):
                pred = predict(model, start.cond, x_t.detach(), levels[0])
            x_t = linear_step(model.path, model.prediction, x_t, pred, *levels)
        return x_t

    def state_dict(self) -> Mapping[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state)


def check_steps(settings: DRTuneConfig, rollout: RolloutConfig) -> None:
    """Refuse more trained steps than the earliest stop leaves."""
    fewest = rollout.num_inference_steps + 1 - settings.early_stop
    if settings.trained_steps > fewest:
        raise DirectAlignError(
            f"method.trained_steps {settings.trained_steps} does not fit: with method.early_stop "
            f"{settings.early_stop} a rollout of rollout.num_inference_steps "
            f"{rollout.num_inference_steps} may end after {fewest}; lower one of the first two, or "
            "sample in more steps"
        )
