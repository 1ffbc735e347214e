"""Measure where the relative term should stop to pay, on the base model at its best. Ours.

Once, before training, the base model samples prompts of the run with a positive phrase before each.
The mean of pos − neg over these images is the gap g*, that of the score under the bare prompt the
anchor's reference p*. For a base that does not obey words: with `ceiling.best` it samples the bare
prompts, g* is the mean of the best share of these images by pos − neg, and p* the mean of all.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from fractions import Fraction

import torch

from ..config import RunConfig
from ..diffusion.rng import NOISE, draw_noise, generator_for
from ..diffusion.sampling import (
    RolloutStart,
    encode,
    image_size,
    rollout_conditioning,
    rollout_sigmas,
    sample_rollout,
)
from ..interfaces import Method, Model, ProcessGroup
from ..models.lora import ReferenceModel, has_adapters
from ..rewards.common import reward_input
from ..types import Latents
from .base_target import select_phrases
from .objective import MixedObjective, RewardObjective

logger = logging.getLogger(__name__)
BEFORE_TRAINING = -1
"""The step of the noise: updates count from 0."""


def unmeasured(method: Method) -> list[RewardObjective]:
    """The objectives of a method whose ceiling must be measured before its first update."""
    found = getattr(method, "objective", None)  # a method of the user's own may have none
    every = found.objectives if isinstance(found, MixedObjective) else [found]
    return [
        each
        for each in every
        if isinstance(each, RewardObjective)
        and each.settings.form != "absolute"
        and each.settings.ceiling is not None
        and each.settings.ceiling.gap is None
        and each.base_means is None
    ]


@torch.no_grad()
def measure_ceiling(
    method: Method, model: Model, run: RunConfig, prompts: Sequence[str], group: ProcessGroup
) -> None:
    """Set `base_means` of each objective of `unmeasured`; every process must call this.

    `model` is the base, apart from its adapters; `prompts` are those of all images. The images do
    not depend on the number of processes.
    """
    count = len(prompts)
    each = -(-count // group.size)
    places = range(group.rank * each, (group.rank + 1) * each)
    own = [min(place, count - 1) for place in places]  # the last one fills up
    for objective in unmeasured(method):
        phrases, ceiling = objective.settings.control_phrases, objective.settings.ceiling
        best = None if ceiling is None else ceiling.best
        order = ("fixed", "fixed") if phrases.order == "fixed" else ("cycle", "average")
        texts = list(prompts)
        if best is None:
            words = [select_phrases(phrases.positive, order[0], row)[0] for row in range(count)]
            texts = [f"{word}. {prompt}" for word, prompt in zip(words, prompts, strict=True)]
        found = []
        for first in range(0, each, run.data.batch_size):
            rows = own[first : first + run.data.batch_size]
            x0 = _base_latents(model, run, texts, rows)
            seen = reward_input(objective.reward_model, model, x0)
            scores = objective.scores(seen, [prompts[row] for row in rows], order[1], 0)
            gap = scores["score_pos"] - scores["score_neg"]
            plain = scores.get("score_plain", torch.full_like(gap, torch.nan))
            found.append(torch.stack([gap, plain], 1).double().cpu())
        measured, how = group.gather(torch.cat(found))[:count], "asked with the positive phrases,"
        gap, plain = measured.mean(0).tolist()
        if best is not None:
            chosen = math.ceil(Fraction(str(best)) * count)  # 0.07 of 100 are 7, as a float 8
            gap, how = (
                float(measured[:, 0].topk(chosen).values.mean()),
                f"unasked, the best {chosen}",
            )
        objective.base_means = gap, plain
        logger.info(
            f"ceiling of {objective.reward_model.name}: {count} images of the base model, {how} "
            f"have pos − neg {gap:.4f} in the mean, plain {plain:.4f}"
        )


def _base_latents(model: Model, run: RunConfig, prompts: Sequence[str], rows: list[int]) -> Latents:
    """Of these rows of `prompts`, each with noise of its own, sampled as rollouts are."""
    rollout = run.rollout
    height, width = image_size(model, rollout)
    shape = (len(prompts), *model.latent_shape(height, width))
    noise = draw_noise(shape, generator_for(run.seed, NOISE, BEFORE_TRAINING))[rows]
    sigmas = rollout_sigmas(model, rollout, height, width)
    cond = rollout_conditioning(encode(model, [prompts[row] for row in rows]), rollout)
    noise = noise.to(next(model.denoiser.parameters()).device)
    adapted = has_adapters(model.denoiser)  # without adapters the model itself is the base
    with ReferenceModel(model.denoiser).active() if adapted else nullcontext():
        return sample_rollout(model, RolloutStart(cond, noise, sigmas, rollout.solver))
