"""DRTune (arXiv 2405.00760): a few spread sampling steps train, and no gradient flows through a
network's input.

The paper: stop the gradient at the denoiser's input, so that the reward reaches early steps along
only the chain of samples, where nothing multiplies up; train K equally spaced steps; stop sampling
early at random and score the one-step estimate there. Here: the same for every path and prediction
type, one draw of the stop and of the first trained step per sample, the K steps spread over those
before the stop so that all of them count. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..config import DRTuneConfig, RolloutConfig
from ..diffusion.rng import STEPS, draw_rows, update_generator
from ..diffusion.sampling import RolloutStart, keep_gradient, linear_step, predict, start_rollout
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
        x0_hat = self._chain(start, stop, trained)

        output = self.objective(self.model.decode(x0_hat), batch)
        loss = hinge(output.reward, 1.0, self.settings.margin)

        levels = {"sigma": start.sigmas[stop], "reward": output.reward}
        lists = {name: value.detach().double().tolist() for name, value in levels.items()}
        yield LossTerm(loss.mean(), "chain", output.metrics, lists)

    def steps(self, batch: Batch) -> tuple[Int64[Tensor, " b"], Int64[Tensor, "b k"]]:
        """(stop, trained) of each sample: the step whose estimate is scored, and the K trained ones
        among 0, ..., stop.

        The stop is uniform over the last `early_stop` steps. The trained steps are ⌊(stop + 1) / K⌋
        apart, the first drawn uniformly from where they all fit.
        """
        generator, count = update_generator(batch, STEPS), self.settings.trained_steps
        draws = draw_rows(
            batch, lambda n: torch.rand((n, 2), generator=generator, dtype=torch.float64)
        )
        back = 1 + (draws[:, 0] * self.settings.early_stop).long()
        stop = self.rollout.num_inference_steps - back
        spacing = (stop + 1) // count
        room = stop + 1 - (count - 1) * spacing
        first = (draws[:, 1] * room).long()
        return stop, first[:, None] + spacing[:, None] * torch.arange(count)

    def _chain(
        self, start: RolloutStart, stop: Int64[Tensor, " b"], trained: Int64[Tensor, "b k"]
    ) -> Latents:
        """x0_hat of each sample at its stop; the graph joins the trained predictions only through
        the sampler's coefficients."""
        model, x_t = self.model, start.noise
        sigmas, stop, trained = (each.to(x_t.device) for each in (start.sigmas, stop, trained))
        for index in range(int(stop.max()) + 1):
            trains = (trained == index).any(1)
            sigma_from = sigmas[index].expand(len(x_t))
            # from the stop, one step to sigma 0 gives x0_hat
            sigma_to = torch.where(stop == index, 0.0, sigmas[index + 1])
            with torch.set_grad_enabled(bool(trains.any())):
                pred = predict(model, start.cond, x_t.detach(), sigma_from)
            pred = keep_gradient(pred, trains)
            stepped = linear_step(model.path, model.prediction, x_t, pred, sigma_from, sigma_to)
            x_t = torch.where((index <= stop)[:, None, None, None], stepped, x_t)
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
