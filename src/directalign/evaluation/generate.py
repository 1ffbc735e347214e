"""From pairs to images: an image depends on its prompt, its seed and the weights, never on the batch or process it was made in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .. import config
from ..diffusion.sampling import rollout_sigmas, sample
from ..interfaces import ALONE, Family, Together
from ..models.reference_model import BaseModel, has_adapters
from ..types import DirectAlignError, Images
from .pairs import noise_of


@torch.no_grad()
def generate(family: Family, prompts: Sequence[str], seeds: Sequence[int], rollout: config.Rollout, batch_size: int = 32, together: Together = ALONE) -> Images:
    """Images (n, 3, H, W) of the prompt-seed pairs, float32 clamped to [0, 1], on the CPU.

    Ranks that come here `together` each make an equal part and all return all images.
    """
    if not prompts:
        raise DirectAlignError("no prompts to sample: give at least one")
    each = -(-len(prompts) // together.size)
    own = [min(place, len(prompts) - 1) for place in range(together.rank * each, (together.rank + 1) * each)]  # the last pair fills up
    images = _generate(family, [prompts[place] for place in own], [seeds[place] for place in own], rollout, batch_size)
    return together.gather(images)[: len(prompts)]


def _generate(family: Family, prompts: Sequence[str], seeds: Sequence[int], rollout: config.Rollout, batch_size: int) -> Images:
    height, width = image_size(family, rollout)
    sigmas = rollout_sigmas(family, rollout, height, width)
    noise = noise_of(seeds, family.latent_shape(height, width))
    device = next(family.denoiser.parameters()).device
    images = []
    for first in range(0, len(prompts), batch_size):
        cond = family.encode_prompt(prompts[first : first + batch_size]).guided(rollout.embedded_guidance, rollout.cfg_scale)
        x0 = sample(family, cond, noise[first : first + batch_size].to(device), sigmas)
        images.append(family.decode(x0).float().clamp(0, 1).cpu())
    return torch.cat(images)


def image_size(family: Family, rollout: config.Rollout) -> tuple[int, int]:
    """(height, width) in pixels: the recipe's, or what the checkpoint was made for."""
    return rollout.height or family.default_size[0], rollout.width or family.default_size[1]


@contextmanager
def base_weights(family: Family) -> Iterator[None]:
    """The model as it was before training, for as long as the context lasts: LoRA adapters off, then on again."""
    if not has_adapters(family.denoiser):
        raise DirectAlignError("all weights were trained, so the base model is not in here: load it by itself from model.path")
    with BaseModel(family.denoiser).worn():
        yield
