"""How well a reward listens to control words, measured on wanted and unwanted pictures: does pos − neg tell them apart, where does it
push, what becomes of the content, and how much does it answer to what no word asked for?

The *intended* direction leads from an unwanted picture to the wanted one of the same content; the *actual* one is the gradient of
pos − neg at the unwanted picture. The angle between them is 0° for a reward that pushes straight and 90° for one that pushes elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .. import config
from ..interfaces import Reward
from ..types import Images, PerSample
from .bias_probes import PROBES
from .examples import Examples

Vectors = Float[Tensor, "n d"]
BATCH = 32
GRAIN = 8
"""Pixels of the blocks over which pixel directions are averaged: finer detail differs between two pictures of one scene."""
OTHERS = 8
"""Other captions that each picture is asked about."""
RESAMPLES = 1000


def measure(reward: Reward, examples: Examples, words: config.ControlPhrases) -> dict[str, Any]:
    """Everything below by name: responsiveness, content, bias and, where the examples are paired, the angles.

    Returns plain numbers, ready for JSON; angles are {"value", "low", "high", "n"} in degrees, scores in the reward's own units.
    """
    sides = {"wanted": (examples.wanted, examples.wanted_prompts), "unwanted": (examples.unwanted, examples.unwanted_prompts)}
    told = [relative_scores(reward, images, prompts, words) for images, prompts in sides.values()]
    heard = {"content": content(reward, *sides["wanted"]), "content_with_words": content(reward, *sides["wanted"], words)}
    straight = angles(reward, examples, words) if examples.paired and reward.differentiable else {}
    return {**responsiveness(*told), **heard, "bias": bias(reward, examples, words), **straight}


def relative(reward: Reward, features: Any, prompts: Sequence[str], words: config.ControlPhrases) -> PerSample:
    """pos − neg, each the mean over its phrases, gradient intact."""
    sides = [[reward.score(features, [f"{phrase}. {prompt}" for prompt in prompts]) for phrase in phrases] for phrases in (words.positive, words.negative)]
    pos, neg = (torch.stack(each).mean(0) for each in sides)
    return pos - neg


@torch.no_grad()
def relative_scores(reward: Reward, images: Images, prompts: Sequence[str], words: config.ControlPhrases) -> PerSample:
    """pos − neg of many images, in batches, on the CPU."""
    return torch.cat([relative(reward, reward.encode(part), texts, words).float().cpu() for part, texts in batches(images, prompts)])


def batches(images: Images, prompts: Sequence[str]) -> Iterator[tuple[Images, Sequence[str]]]:
    """Images and their prompts, `BATCH` at a time."""
    return ((images[i : i + BATCH], prompts[i : i + BATCH]) for i in range(0, len(images), BATCH))


# --- does it hear? ------------------------------------------------------------------------------------------------------


def responsiveness(wanted: PerSample, unwanted: PerSample) -> dict[str, float]:
    """How far the two sides lie apart in pos − neg: `separation` (in score units), the same over their spread, and `auc`.

    `responsiveness` is the difference of the means over the root of the mean variance (d′ of signal detection); `auc` the share of
    all wanted-unwanted pairs in which the wanted picture has the larger pos − neg, ties counting half.
    """
    separation = (wanted.mean() - unwanted.mean()).item()
    spread = ((wanted.var() + unwanted.var()) / 2).sqrt().clamp(min=torch.finfo(wanted.dtype).tiny).item()
    higher = (wanted[:, None] > unwanted).double() + 0.5 * (wanted[:, None] == unwanted).double()
    return {"separation": separation, "responsiveness": separation / spread, "auc": higher.mean().item()}


@torch.no_grad()
def content(reward: Reward, images: Images, prompts: Sequence[str], words: config.ControlPhrases | None = None) -> float:
    """Share of comparisons with other captions of the set that a picture's own caption wins; `words` puts the positive phrases first."""
    phrases = [f"{phrase}. " for phrase in words.positive] if words else [""]
    shifts = sorted({max(1, round(k * len(prompts) / (OTHERS + 1))) for k in range(1, OTHERS + 1)})
    features = [reward.encode(part) for part, _ in batches(images, prompts)]

    def score(shift: int) -> PerSample:
        moved = [*prompts[shift:], *prompts[:shift]]
        each = [
            [reward.score(part, [phrase + text for text in texts]) for part, (_, texts) in zip(features, batches(images, moved), strict=True)]
            for phrase in phrases
        ]
        return torch.stack([torch.cat(parts) for parts in each]).mean(0)

    own, differs = score(0), [torch.tensor([a != b for a, b in zip(prompts, [*prompts[s:], *prompts[:s]], strict=True)]) for s in shifts]
    won = [(own > score(shift)).cpu()[other] for shift, other in zip(shifts, differs, strict=True)]
    return torch.cat(won).double().mean().item()


def bias(reward: Reward, examples: Examples, words: config.ControlPhrases) -> dict[str, dict[str, float]]:
    """What each of `bias_probes` adds to the score of the bare prompt (`absolute`) and to pos − neg (`relative`), means over all pictures."""
    images, prompts = torch.cat([examples.wanted, examples.unwanted]), [*examples.wanted_prompts, *examples.unwanted_prompts]
    before = _plain_and_relative(reward, images, prompts, words)
    after = {name: _plain_and_relative(reward, probe(images), prompts, words) for name, probe in PROBES.items()}
    return {name: {kind: (moved[kind] - before[kind]).mean().item() for kind in before} for name, moved in after.items()}


@torch.no_grad()
def _plain_and_relative(reward: Reward, images: Images, prompts: Sequence[str], words: config.ControlPhrases) -> dict[str, PerSample]:
    seen = [(reward.encode(part), texts) for part, texts in batches(images, prompts)]
    plain = torch.cat([reward.score(features, texts).float().cpu() for features, texts in seen])
    return {"absolute": plain, "relative": torch.cat([relative(reward, features, texts, words).float().cpu() for features, texts in seen])}


# --- does it push straight? ---------------------------------------------------------------------------------------------


def angles(reward: Reward, examples: Examples, words: config.ControlPhrases) -> dict[str, Any]:
    """`angle` between the mean directions among image features, `scene_angle` of the mean cosine scene by scene, and `pixel_angle`,
    scene by scene among pixels averaged over blocks; the first two only where a reward's image features are vectors."""
    pixels = pixel_directions(reward, examples, words)
    among = feature_directions(reward, examples, words)
    found = {"angle": angle_of_means(*among), "scene_angle": angle_by_scene(*among)} if among is not None else {}
    return {**found, "pixel_angle": angle_by_scene(*pixels)}


def feature_directions(reward: Reward, examples: Examples, words: config.ControlPhrases) -> tuple[Vectors, Vectors] | None:
    """Intended and actual direction (n, d) among image features at each unwanted picture; None where features are no vectors.

    Features of length 1 live on a sphere: of both directions the part along it is taken.
    """
    intended, actual = [], []
    sides = [batches(examples.wanted, examples.wanted_prompts), batches(examples.unwanted, examples.unwanted_prompts)]
    for (wanted, _), (unwanted, texts) in zip(*sides, strict=True):
        with torch.no_grad():
            there, here = reward.encode(wanted), reward.encode(unwanted)
        if not is_vectors(here):
            return None
        intended.append(tangent(there - here, here).cpu())
        actual.append(tangent(pull(reward, here, texts, words), here).cpu())
    return torch.cat(intended).double(), torch.cat(actual).double()


def is_vectors(features: Any) -> bool:
    """Whether image features are one vector per image."""
    return isinstance(features, Tensor) and features.ndim == 2


def pull(reward: Reward, features: Vectors, prompts: Sequence[str], words: config.ControlPhrases, create_graph: bool = False) -> Vectors:
    """Gradient of pos − neg with respect to the image features."""
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        return torch.autograd.grad(relative(reward, leaf, prompts, words).sum(), leaf, create_graph=create_graph)[0]


def tangent(vectors: Vectors, features: Vectors) -> Vectors:
    """The part of `vectors` along the sphere at unit `features`; of others, the vectors as they are."""
    is_unit = (features.norm(dim=1) - 1).abs().max() < 1e-3
    return vectors - (vectors * features).sum(1, keepdim=True) * features if is_unit else vectors


def pixel_directions(reward: Reward, examples: Examples, words: config.ControlPhrases, grain: int = GRAIN) -> tuple[Vectors, Vectors]:
    """Intended and actual direction (n, d) among pixels at each unwanted picture, both averaged over blocks of `grain` pixels."""

    def coarse(images: Images) -> Tensor:
        return F.avg_pool2d(images, min(grain, *images.shape[-2:])).flatten(1).double().cpu()

    actual = []
    for unwanted, texts in batches(examples.unwanted, examples.unwanted_prompts):
        leaf = unwanted.clone().requires_grad_()
        actual.append(coarse(torch.autograd.grad(relative(reward, reward.encode(leaf), texts, words).sum(), leaf)[0]))
    return coarse(examples.wanted - examples.unwanted), torch.cat(actual)


def angle_of_means(intended: Vectors, actual: Vectors) -> dict[str, float]:
    """Degrees between the mean directions, with a 95 % bootstrap interval over scenes (see `_interval`)."""
    return _interval(len(intended), lambda picks: F.cosine_similarity(intended[picks].mean(-2), actual[picks].mean(-2), dim=-1))


def angle_by_scene(intended: Vectors, actual: Vectors) -> dict[str, float]:
    """Degrees whose cosine is the mean cosine over scenes, with a 95 % bootstrap interval over scenes."""
    cosines = F.cosine_similarity(intended, actual, dim=-1)
    return _interval(len(intended), lambda picks: cosines[picks].mean(-1))


def _interval(n: int, cosine: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """{value, low, high, n} in degrees: reverse percentiles of a bootstrap with a fixed seed, so that the same data give the same answer.

    Noise in two means opens the angle between them, and resampling opens it once more: reflecting the percentiles takes that off.
    """
    generator = torch.Generator().manual_seed(0)
    value = _degrees(cosine(torch.arange(n)[None]))[0]
    drawn = torch.cat([_degrees(cosine(torch.randint(n, (1, n), generator=generator))) for _ in range(RESAMPLES)])
    ends = 2 * value - drawn.quantile(torch.tensor([0.975, 0.025], dtype=drawn.dtype))
    low, high = ends.clamp(0, 180).tolist()
    return {"value": value.item(), "low": low, "high": high, "n": n}


def _degrees(cosines: Tensor) -> Tensor:
    return torch.rad2deg(torch.acos(cosines.clamp(-1, 1)))
