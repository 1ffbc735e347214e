"""DRTune (arXiv 2405.00760): a few spread steps train, without gradient through network inputs.

The paper: stop the gradient at the denoiser's input, so that the reward reaches early steps along
the chain of samples only, where nothing multiplies up; train K equally spaced steps; stop sampling
early at random and score the one-step estimate there. Here: the same for every path and prediction
type, one draw of the stop and of the first trained step per sample, the K steps spread over those
before the stop so that all of them count. Left out: nothing.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from ..config import DRTuneConfig, RolloutConfig
from ..device import to_device
from ..diffusion.rng import STEPS, draw_rows, update_generator
from ..diffusion.sampling import RolloutStart, keep_gradient, linear_step, predict
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
        start, (stop, trained) = self.start(batch), self.steps(batch)
        x0_hat = self._chain(start, stop, trained)
        yield self.image_loss(x0_hat, batch, "chain", start.sigmas[stop])
        yield from self.kl_losses(batch, x0_hat, start.cond)

    def steps(self, batch: Batch) -> tuple[Int64[Tensor, " b"], Int64[Tensor, "b k"]]:
        """(stop, trained) of each sample: the step whose estimate is scored, K trained ones in 0,
        ..., stop.

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
        """x0_hat of each sample at its stop; its graph has no input of a network call."""
        model, x_t = self.model, start.noise
        last, anywhere = int(stop.max()), set(trained.flatten().tolist())
        sigmas, stop, trained = (
            to_device(each, x_t.device) for each in (start.sigmas, stop, trained)
        )
        for index in range(last + 1):
            trains = (trained == index).any(1)
            sigma_from = sigmas[index].expand(len(x_t))
            # from the stop, one step to sigma 0 gives x0_hat
            sigma_to = torch.where(stop == index, 0.0, sigmas[index + 1])
            with torch.set_grad_enabled(index in anywhere):
                pred = predict(model, start.cond, x_t.detach(), sigma_from)
            pred = keep_gradient(pred, trains)
            stepped = linear_step(model.path, model.prediction, x_t, pred, sigma_from, sigma_to)
            x_t = torch.where((index <= stop)[:, None, None, None], stepped, x_t)
        return x_t
