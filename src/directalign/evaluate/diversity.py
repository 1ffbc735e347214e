"""How much the images of one prompt differ from seed to seed: what a collapsed model has lost.

A few fixed prompts are sampled from four fixed seeds each, the same seeds for every prompt, so that two models are compared
on the same noise. The distance of two images is their root mean square difference in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from ..order import permutation
from ..types import DirectAlignError, Images
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
