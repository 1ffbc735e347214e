"""Diffusion-DPO (arXiv 2311.12908), Flow-DPO (arXiv 2501.13918): training on preference pairs.

The papers: where people chose image w over image l, the denoising error of the trained model falls
more, against that of the model before training, at w than at l. Both images get the same noise and
level, and with d = |v − target|² − |v_base − target|²

    loss = −log sigmoid( −beta/2·(d_w − d_l) )

Here: the squares are means over dimensions, as in the released code of Diffusion-DPO, and beta is
the same at every level, which Flow-DPO found better than its own derivation's factor. v is the
model's own prediction (epsilon or v for a DDPM). The images come from `data.pairs`; no reward takes
part in an update. The training call is that of the rollout without classifier-free guidance. Left
out: pairs that the model makes and a reward ranks, ties.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..config import DPOConfig, RolloutConfig
from ..device import to_device, to_like
from ..diffusion import path, recovery, rng
from ..diffusion.sampling import encode, predict
from ..interfaces import Model, Reward
from ..models.lora import ReferenceModel
from ..types import Batch, DirectAlignError, LossTerm
from .objective import ObjectiveMethod, build_sigma_sampler


class DPO(ObjectiveMethod):
    """`losses(batch)` yields one loss, of the pairs `batch.images` and `batch.rejected`."""

    def __init__(
        self, model: Model, reward: Reward, settings: DPOConfig, rollout: RolloutConfig
    ) -> None:
        super().__init__(model, reward, settings, rollout, differentiable=False)
        self.sampler = build_sigma_sampler(settings.noise_levels, model, rollout)
        self.base = ReferenceModel(model.denoiser)

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Encode both images; noise them alike; predict; compare with the base; yield.

        Raises: DirectAlignError for a batch without pairs.
        """
        model, rollout = self.model, self.rollout
        if batch.images is None or batch.rejected is None:
            raise DirectAlignError("method.name dpo trains on preference pairs: set data.pairs")
        x0 = torch.cat([model.encode_image(each) for each in (batch.images, batch.rejected)])
        shape = (len(batch.prompts), *x0.shape[1:])
        noise = to_like(rng.batch_noise(batch, rng.FRESH_NOISE, shape), x0).repeat(2, 1, 1, 1)
        generator = rng.update_generator(batch, rng.NOISE_LEVEL)
        drawn = rng.draw_rows(batch, lambda n: self.sampler.draw(n, generator)).repeat(2)
        noised = recovery.inject(model.path, x0, noise, self.sampler.denoise(drawn).sigma_from)
        target = path.target(model.path, model.prediction, x0, noise, noised.sigma)

        cond = encode(model, batch.prompts * 2)
        cond = cond.guided(rollout.embedded_guidance, 1.0, rollout.truncate_timestep)
        sigma = to_device(noised.sigma, x0.device)
        with torch.no_grad(), self.base.active():
            before = predict(model, cond, noised.x_t, sigma)
        pred = predict(model, cond, noised.x_t, sigma)
        change = torch.square(pred - target) - torch.square(before - target)
        chosen, rejected = change.mean((1, 2, 3)).chunk(2)
        margin = -0.5 * self.settings.beta * (chosen - rejected)
        found = {"chosen_error": chosen, "rejected_error": rejected, "margin": margin}
        found["agreement"] = (margin > 0).to(margin)
        metrics = {name: each.mean() for name, each in found.items()}
        levels = {"sigma": noised.sigma[: len(margin)], "margin": margin}
        yield LossTerm(-F.logsigmoid(margin).mean(), "pairs", metrics, levels)
