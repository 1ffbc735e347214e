"""Direct-Align and SRPO (arXiv 2509.06942): known noise in, one network call, a closed-form image, a reward output two ways.

The paper: optimise the whole trajectory by recovering x0 from any noise level with the *injected* noise, and
reward what one control phrase has over another, on a denoise and an inversion branch that land on the same
level. Here: the same step for every path and prediction, with `form` choosing plain Direct-Align (absolute), SRPO
(relative), or our own anchored reward, which holds the bare prompt's score where the base model had it and needs no
inversion branch; and, if output for, a trust region: the base model is output at the same x_t and the prediction held close
to its. Left out: nothing of the released trainer's step; its values are the presets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import ConstantGainNoiseLevels, GridNoiseLevels, UniformNoiseLevels
from ..config import RolloutConfig as RolloutSettings
from ..config import SRPOConfig as Settings
from ..diffusion import noise_levels, recovery, rng
from ..diffusion.path import expand_like, truncate_sigmas
from ..diffusion.rng import FRESH_NOISE, NOISE_LEVEL
from ..diffusion.sampling import batch_noise, sample, start_rollout
from ..interfaces import Model, Reward
from ..models.reference_model import ReferenceModel
from ..types import Batch, Conditioning, Latents, LossTerm, PerSample
from . import objective_math
from .objective import build_objective


class SRPO:
    """`losses(batch)` yields one loss per injection and branch."""

    def __init__(
        self, model: Model, reward: Reward, settings: Settings, rollout: RolloutSettings
    ) -> None:
        self.model, self.settings, self.rollout = model, settings, rollout
        self.objective = build_objective(reward, settings)
        self.window = window_of(settings.noise_levels, model)
        self.branches = {"both": ("denoise", "inversion")}.get(
            settings.branches, (settings.branches,)
        )
        self.shared_noise = settings.noise.scope == "shared"
        self.base = ReferenceModel(model.denoiser) if settings.kl_beta > 0 else None

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        """Make x0; then for each injection and branch: inject, predict, recover, reward, yield."""
        x0, noise, cond = self._clean_images(batch)
        for injection in range(self.settings.injections):
            known = (
                noise
                if noise is not None
                else batch_noise(batch, FRESH_NOISE, tuple(x0.shape), self.shared_noise, injection)
            )
            generator = rng.update_generator(batch, NOISE_LEVEL, injection)
            landing = rng.draw_rows(
                batch, lambda total, generator=generator: self.window.draw(total, generator)
            )
            for branch in self.branches:
                move = (
                    self.window.denoise(landing)
                    if branch == "denoise"
                    else self.window.inversion(landing)
                )
                yield self._branch(batch, cond, x0, known.to(x0), move, branch)

    def _branch(
        self,
        batch: Batch,
        cond: Conditioning,
        x0: Latents,
        noise: Latents,
        move: noise_levels.NoiseStep,
        branch: str,
    ) -> LossTerm:
        model, settings = self.model, self.settings
        noised = recovery.inject(model.path, x0, noise, move.sigma_from)
        shown = self._shown(move.sigma_from, x0.device)
        base = self._base_prediction(noised.x_t, shown, cond)
        pred = model.predict(noised.x_t, shown, cond)
        recovered = recovery.recover(model.path, model.prediction, noised, pred, move.sigma_to)

        ramps = settings.denoise if branch == "denoise" else settings.inversion
        k_pos, k_neg = (
            noise_levels.Ramp(ramp.low_noise, ramp.high_noise).at(move.position)
            for ramp in (ramps.k_pos, ramps.k_neg)
        )
        output = self.objective(model.decode(recovered.x0), batch, k_pos, k_neg)
        loss = objective_math.hinge(
            output.reward, recovery.direction(recovered.gain), settings.margin
        )
        if settings.discount_shift is not None:
            loss = loss * objective_math.discount(move.position, settings.discount_shift).to(loss)
        error = (
            (expand_like(recovered.gain, noised.x0).to(noised.x0) * recovered.residual)
            .square()
            .mean((1, 2, 3))
            .sqrt()
        )
        metrics, levels = (
            output.metrics,
            {
                "sigma": move.sigma_from,
                "gain": recovered.gain,
                "reward": output.reward,
                "recovery_error": error,
            },
        )
        if base is not None:
            away = objective_math.velocity_kl(pred, base)
            loss = loss + settings.kl_beta * away.to(loss)
            metrics, levels = (
                {**metrics, "kl": float(away.detach().mean())},
                {**levels, "kl": away},
            )
        return LossTerm(loss.mean() / settings.injections, branch, metrics, _lists(levels))

    @torch.no_grad()
    def _base_prediction(
        self, x_t: Latents, shown: PerSample, cond: Conditioning
    ) -> Latents | None:
        """What the base model says; before the call with gradient, because weights that change hands in place would spoil its graph."""
        if self.base is None:
            return None
        with self.base.active():
            return self.model.predict(x_t, shown, cond)

    @torch.no_grad()
    def _clean_images(self, batch: Batch) -> tuple[Latents, Latents | None, Conditioning]:
        """Clean latents, the noise they were made from if that is the noise to inject, and the prompts for the training call."""
        guidance = self.settings.embedded_guidance, self.settings.cfg_scale
        if batch.images is not None:
            return (
                self.model.encode_image(batch.images),
                None,
                self.model.encode_prompt(batch.prompts).guided(*guidance),
            )
        begun = start_rollout(self.model, self.rollout, batch, self.shared_noise)
        x0 = sample(self.model, begun.cond, begun.noise, begun.sigmas)
        return (
            x0,
            begun.noise if self.settings.noise.source == "rollout" else None,
            begun.cond.guided(*guidance),
        )

    def _shown(self, sigma: Tensor, device: torch.device) -> PerSample:
        resolution = self.settings.truncate_timestep
        return (sigma if resolution is None else truncate_sigmas(sigma, resolution)).to(device)

    def state_dict(self) -> Mapping[str, Any]:
        return self.objective.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state)


def window_of(
    chosen: GridNoiseLevels | UniformNoiseLevels | ConstantGainNoiseLevels, model: Model
) -> noise_levels.SigmaSampler:
    """The window of noise levels that the settings describe."""
    if isinstance(chosen, GridNoiseLevels):
        return noise_levels.GridSampler(
            chosen.schedule_steps,
            chosen.schedule_shift,
            chosen.first,
            chosen.last,
            chosen.points,
            chosen.groundtruth_ratio,
        )
    if isinstance(chosen, UniformNoiseLevels):
        return noise_levels.UniformSampler(chosen.sigma_high, chosen.sigma_low, chosen.jump)
    return noise_levels.ConstantGainSampler(
        chosen.sigma_high, chosen.sigma_low, chosen.gain, model.path, model.prediction
    )


def _lists(levels: Mapping[str, PerSample]) -> dict[str, list[float]]:
    return {name: value.detach().double().cpu().tolist() for name, value in levels.items()}
