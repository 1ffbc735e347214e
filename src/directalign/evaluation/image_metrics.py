"""Metrics of pixels: per-image statistics, distances between images, diversity, and colour drift.

`STATISTICS` are evaluated during training and in comparisons; `metrics` describes each by its name.
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..data.shuffle import permutation
from ..rewards.pixel_statistics import saturation
from ..types import DirectAlignError, Images, PerSample
from .eval_prompts import FIRST_SEED, Pairs

SEEDS_PER_PROMPT = 4
FIRST_DIVERSITY_SEED = 2 * FIRST_SEED
"""Above the seeds of the fixed pairs, so no image is evaluated twice."""
Vectors = Float[Tensor, "b *_shape"]
"""One item per image: the image itself, or its features."""


def diversity_pairs(prompts: Sequence[str], num_prompts: int) -> Pairs:
    """`num_prompts` prompts in the fixed shuffled order, each with the same four seeds.

    Raises: DirectAlignError for more prompts than there are.
    """
    if num_prompts > len(prompts):
        raise DirectAlignError(
            f"evaluate.diversity_prompts is {num_prompts}, and the run is measured on "
            f"{len(prompts)} prompts: ask for {len(prompts)} at most"
        )
    chosen = [prompts[place] for place in permutation(len(prompts), seed=0, epoch=0)[:num_prompts]]
    seeds = range(FIRST_DIVERSITY_SEED, FIRST_DIVERSITY_SEED + SEEDS_PER_PROMPT)
    return Pairs(
        tuple(prompt for prompt in chosen for _ in seeds),
        tuple(seed for _ in chosen for seed in seeds),
    )


def diversity(images: Images, per_prompt: int = SEEDS_PER_PROMPT) -> float:
    """Mean over prompts of the mean pairwise RMSE between images of one prompt; 0 to 1.

    `images` are in [0, 1], the `per_prompt` images of one prompt adjacent.
    """
    by_prompt = images.reshape(-1, per_prompt, *images.shape[1:])
    pairs = list(combinations(range(per_prompt), 2))
    return float(sum(rmse(by_prompt[:, i], by_prompt[:, j]).mean() for i, j in pairs)) / len(pairs)


def rmse(a: Vectors, b: Vectors) -> PerSample:
    """Root mean square difference, row by row; 0 to 1 for images in [0, 1]."""
    return (a.double() - b.double()).flatten(1).square().mean(1).sqrt()


def cosine_distance(a: Vectors, b: Vectors) -> PerSample:
    """1 − cosine, row by row, of vectors of any length; 0 to 2."""
    return 1 - torch.cosine_similarity(a.double(), b.double(), dim=1)


def to_siblings(
    items: Vectors, tasks: Sequence[str], distance: Callable[[Vectors, Vectors], PerSample]
) -> PerSample:
    """Mean distance of each item to the others of its task, NaN without another."""
    found = torch.full((len(items),), torch.nan, dtype=torch.float64)
    for task in dict.fromkeys(tasks):
        places = [place for place, each in enumerate(tasks) if each == task]
        own = items[places]
        for row, place in enumerate(places if len(places) > 1 else ()):
            others = torch.cat([own[:row], own[row + 1 :]])
            found[place] = distance(own[row].expand_as(others), others).mean()
    return found


LUMA = (0.2126, 0.7152, 0.0722)
DARK = 0.1
EDGE = 0.1
LEVELS = 256


def luminance(images: Images) -> Float[Tensor, "b H W"]:
    """Rec. 709 weights on the stored values, in [0, 1]."""
    return torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))


def color_cast(images: Images) -> Float[Tensor, "b 3"]:
    """Mean colour minus its own grey, with sum zero: (2/3, −1/3, −1/3) for pure red."""
    mean = images.mean((2, 3))
    return mean - mean.mean(1, keepdim=True)


def color_drift(images: Images, reference: Images) -> float:
    """Euclidean distance of the mean colour casts of two sets of the same prompts; 0 to 1.64."""
    return (color_cast(images).mean(0) - color_cast(reference).mean(0)).norm().item()


def color_distance(images: Images, reference: Images) -> float:
    """Mean distance of the colour casts of image pairs, 0 to 1.64: drifts of opposite direction do
    not cancel, and two fair draws of one caption already differ."""
    return (color_cast(images) - color_cast(reference)).norm(dim=1).mean().item()


def brightness(images: Images) -> PerSample:
    """Mean luminance, in [0, 1]."""
    return luminance(images).mean((1, 2))


def sharpness(images: Images) -> PerSample:
    """Gradient energy: mean squared difference to the next luminance, right plus below."""
    grey = luminance(images)
    return grey.diff(dim=1).square().mean((1, 2)) + grey.diff(dim=2).square().mean((1, 2))


def high_frequency(images: Images) -> PerSample:
    """Energy of fine detail: mean square of luminance minus its 3×3 mean (edges replicated)."""
    grey = luminance(images)[:, None]
    smooth = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (grey - smooth).square().mean((1, 2, 3))


def dark_share(images: Images) -> PerSample:
    """Share of pixels whose luminance is below 0.1."""
    return (luminance(images) < DARK).float().mean((1, 2))


def entropy(images: Images) -> PerSample:
    """Shannon entropy of the histogram of luminance in 256 levels (Shannon 1948), in bits: 0 for a
    flat image, 8 where all levels are equally frequent."""
    levels = (luminance(images) * (LEVELS - 1)).round().long().clamp(0, LEVELS - 1).flatten(1)
    counts = torch.stack([torch.bincount(each, minlength=LEVELS) for each in levels])
    shares = counts.to(images.dtype) / levels.shape[1]
    return torch.special.entr(shares).sum(1) / math.log(2)


def edge_density(images: Images) -> PerSample:
    """Share of pixels whose luminance differs by more than 0.1 from that of the next pixel right or
    below; 0 to 1, last row and column left out."""
    grey = luminance(images)
    below, right = grey.diff(dim=1)[:, :, :-1].abs(), grey.diff(dim=2)[:, :-1].abs()
    return (torch.maximum(below, right) > EDGE).to(images.dtype).mean((1, 2))


STATISTICS: dict[str, Callable[[Images], PerSample]] = {
    "brightness": brightness,
    "saturation": saturation,
    "sharpness": sharpness,
    "high_frequency": high_frequency,
    "dark_share": dark_share,
    "entropy": entropy,
    "edge_density": edge_density,
}
"""Of images (b, 3, H, W), by name in `metrics`."""


def statistics(images: Images) -> dict[str, PerSample]:
    """All of `STATISTICS`, each (b,)."""
    return {name: function(images) for name, function in STATISTICS.items()}
