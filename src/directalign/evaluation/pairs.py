"""The fixed prompt-seed pairs that everything is measured on: the same for every run, so that differences are paired.

The noise of a pair is what `torch.Generator().manual_seed(seed)` gives a diffusers pipeline at batch size 1: an image
depends on its prompt and seed alone, and any reader can make it again without this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import config
from ..data.prompts import held_out_captions, read_prompts, train_captions
from ..data.scan import scan_images
from ..data.shuffle import permutation
from ..types import DirectAlignError, Latents

FIRST_SEED = 10_000


@dataclass(frozen=True)
class Pairs:
    """Prompts and seeds, equally long; the first m of n pairs are the same pairs as when m are asked for."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.seeds):
            raise DirectAlignError(f"{len(self.prompts)} prompts and {len(self.seeds)} seeds do not make pairs: give one seed per prompt")

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, count: int) -> Pairs:
        """The first `count` pairs."""
        return Pairs(self.prompts[:count], self.seeds[:count])


def fixed_pairs(prompts: Sequence[str], num_pairs: int) -> Pairs:
    """`num_pairs` pairs: the prompts in a fixed shuffled order, taken up again from the front with new seeds."""
    order = permutation(len(prompts), seed=0, epoch=0)
    chosen = tuple(prompts[order[i % len(order)]] for i in range(num_pairs))
    return Pairs(chosen, tuple(range(FIRST_SEED, FIRST_SEED + num_pairs)))


def measured_prompts(data: config.Data) -> list[str]:
    """What a run is measured on: all 240 captions of the embedded world, held-out ones among them, or the run's own prompts."""
    if data.prompts == "world":
        return sorted(held_out_captions() + train_captions())
    if data.prompts is not None:
        return read_prompts(data.prompts)
    assert data.images is not None
    return list(scan_images(data.images, strict=data.strict).captions)


def noise_of(seeds: Sequence[int], latent_shape: tuple[int, int, int]) -> Latents:
    """The noise of each seed, (n, c, h, w) float32 on the CPU: FluxPipeline and StableDiffusionPipeline draw (1, c, h, w) unpacked."""
    return torch.cat([torch.randn((1, *latent_shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])
