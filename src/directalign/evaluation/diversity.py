"""How much the images of one prompt differ from seed to seed: what a collapsed model has lost.

A few fixed prompts are sampled from four fixed seeds each, the same seeds for every prompt, so that two models are compared
on the same noise. The distance of two images is their root mean square difference in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.shuffle import permutation
from ..types import DirectAlignError, Images, PerSample
from .pairs import FIRST_SEED, Pairs

SEEDS_PER_PROMPT = 4
FIRST_DIVERSITY_SEED = 2 * FIRST_SEED
"""Far from the seeds of the fixed pairs: no image is measured twice."""


def diversity_pairs(prompts: Sequence[str], num_prompts: int) -> Pairs:
    """`num_prompts` prompts in the fixed shuffled order, each with the same four seeds, prompt by prompt.

    Raises: DirectAlignError for more prompts than there are.
    """
    if num_prompts > len(prompts):
        raise DirectAlignError(
            f"evaluate.diversity_prompts is {num_prompts}, and the run is measured on {len(prompts)} prompts: ask for {len(prompts)} at most"
        )
    chosen = [prompts[place] for place in permutation(len(prompts), seed=0, epoch=0)[:num_prompts]]
    seeds = range(FIRST_DIVERSITY_SEED, FIRST_DIVERSITY_SEED + SEEDS_PER_PROMPT)
    return Pairs(tuple(prompt for prompt in chosen for _ in seeds), tuple(seed for _ in chosen for seed in seeds))


def diversity(images: Images, per_prompt: int = SEEDS_PER_PROMPT) -> float:
    """Mean over prompts of the mean pairwise RMSE between the `per_prompt` images of one prompt; 0 to 1.

    `images` are in [0, 1], those of one prompt next to each other, as `diversity_pairs` orders them.
    """
    by_prompt = images.double().reshape(-1, per_prompt, *images.shape[1:])
    distances = [(by_prompt[:, i] - by_prompt[:, j]).square().mean((1, 2, 3)).sqrt() for i, j in combinations(range(per_prompt), 2)]
    return float(sum(distance.mean() for distance in distances)) / len(distances)


Vectors = Float[Tensor, "b *_shape"]
"""One thing per image: the image itself, or its features."""


def rmse(a: Vectors, b: Vectors) -> PerSample:
    """Root mean square difference, row by row; 0 to 1 for images in [0, 1]."""
    return (a.double() - b.double()).flatten(1).square().mean(1).sqrt()


def cosine_distance(a: Vectors, b: Vectors) -> PerSample:
    """1 − cosine, row by row, of vectors of any length; 0 to 2."""
    return 1 - torch.cosine_similarity(a.double(), b.double(), dim=1)


def to_siblings(things: Vectors, prompts: Sequence[str], distance: Callable[[Vectors, Vectors], PerSample]) -> PerSample:
    """Mean distance of each image to the other images of its prompt, NaN where there is no other; the mean over a prompt is its mean pairwise distance."""
    found = torch.full((len(things),), torch.nan, dtype=torch.float64)
    for prompt in dict.fromkeys(prompts):
        places = [place for place, each in enumerate(prompts) if each == prompt]
        own = things[places]
        for row, place in enumerate(places if len(places) > 1 else ()):
            others = torch.cat([own[:row], own[row + 1 :]])
            found[place] = distance(own[row].expand_as(others), others).mean()
    return found
