"""How a reward responds to control phrases on wanted and unwanted images.

Measures: separation of the two sides by pos − neg, direction of its gradient, caption accuracy, and
sensitivity to bias probes. The *intended* direction leads from an unwanted image to the wanted
image of the same content; the *actual* one is the gradient of pos − neg at the unwanted image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .. import config
from ..interfaces import Reward
from ..rewards.common import Device, score_all
from ..types import Images, PerSample
from .images import PROBES, Examples

Vectors = Float[Tensor, "n d"]
BATCH = 32
BLOCK = 8
"""Pixels per block for pixel directions: finer detail differs between two images of a scene."""
OTHER_CAPTIONS = 8
"""Other captions that each image is compared with."""
RESAMPLES = 1000


def measure(reward: Reward, examples: Examples, phrases: config.ControlPhrases) -> dict[str, Any]:
    """All measures by name: responsiveness, content, bias and, for paired examples, angles.

    Returns JSON-ready numbers; scores are in the reward's own units. Angles between the intended
    and the actual direction are {"value", "low", "high", "n"} in degrees. `angle`: between the mean
    directions in feature space. `scene_angle`: of the mean cosine per scene. `pixel_angle`: the
    same for block-averaged pixels. The first two exist only for rewards whose image features are
    vectors.
    """
    wanted, unwanted = (Encoded(reward, *side) for side in examples.sides)
    found: dict[str, Any] = {
        **responsiveness(*(each.relative(phrases).float().cpu() for each in (wanted, unwanted))),
        "content": content(wanted),
        "content_with_words": content(wanted, phrases.positive),
        "bias": bias(reward, examples, phrases),
    }
    if examples.paired and reward.differentiable:
        features = feature_directions(reward, examples, phrases)
        if features is not None:
            found |= {"angle": angle_of_means(*features), "scene_angle": angle_by_scene(*features)}
        found["pixel_angle"] = angle_by_scene(*pixel_directions(reward, examples, phrases))
    return found


def with_phrase(phrase: str, prompts: Sequence[str]) -> list[str]:
    """`{phrase}. {prompt}` for each prompt; the bare prompts if `phrase` is empty."""
    return [f"{phrase}. {prompt}" if phrase else prompt for prompt in prompts]


def phrase_scores(
    reward: Reward, features: Any, prompts: Sequence[str], phrases: Sequence[str]
) -> Float[Tensor, "k b"]:
    """Scores under each phrase; differentiable."""
    return score_all(reward, features, [with_phrase(each, prompts) for each in phrases])


def relative_score(
    reward: Reward, features: Any, prompts: Sequence[str], phrases: config.ControlPhrases
) -> PerSample:
    """pos − neg, each the mean over its phrases; differentiable."""
    pos, neg = (
        phrase_scores(reward, features, prompts, side).mean(0)
        for side in (phrases.positive, phrases.negative)
    )
    return pos - neg


@torch.no_grad()
def encode(reward: Reward, images: Images, device: Device = "cpu") -> list[Any]:
    """Image features, `BATCH` images at a time."""
    return [reward.encode(part.to(device)) for part in images.split(BATCH)]


def vectors(features: Sequence[Any]) -> Vectors | None:
    """Batches of image features as one vector per image; None if they are of another form."""
    are_vectors = all(isinstance(each, Tensor) and each.ndim == 2 for each in features)
    return torch.cat(list(features)) if are_vectors else None


class Encoded:
    """Captioned images, encoded once."""

    def __init__(
        self, reward: Reward, images: Images, captions: Sequence[str], device: Device = "cpu"
    ) -> None:
        self.reward, self.captions = reward, captions
        self.features = encode(reward, images, device)

    @torch.no_grad()
    def score(
        self, phrases: Sequence[str] = ("",), captions: Sequence[str] | None = None
    ) -> PerSample:
        """Mean score over the phrases; `captions` replaces the images' own."""
        texts = captions or self.captions
        parts = [
            phrase_scores(self.reward, features, texts[start : start + BATCH], phrases)
            for features, start in zip(self.features, range(0, len(texts), BATCH), strict=True)
        ]
        return torch.cat(parts, dim=1).mean(0)

    def relative(self, phrases: config.ControlPhrases) -> PerSample:
        """pos − neg, each the mean over its phrases."""
        return self.score(phrases.positive) - self.score(phrases.negative)


def responsiveness(wanted: PerSample, unwanted: Float[Tensor, " c"]) -> dict[str, float]:
    """Separation of pos − neg between both sides.

    `separation`: difference of the means in score units. `responsiveness`: the same over the root
    of the mean variance (d′ of signal detection). `auc`: share of all wanted-unwanted pairs in
    which the wanted image has the larger pos − neg; ties count half.
    """
    separation = (wanted.mean() - unwanted.mean()).item()
    tiny = torch.finfo(wanted.dtype).tiny
    std = ((wanted.var() + unwanted.var()) / 2).sqrt().clamp(min=tiny).item()
    ties = (wanted[:, None] == unwanted).double()
    auc = ((wanted[:, None] > unwanted).double() + 0.5 * ties).mean().item()
    return {"separation": separation, "responsiveness": separation / std, "auc": auc}


def content(encoded: Encoded, positive: Sequence[str] = ("",)) -> float:
    """Share of comparisons in which an image's own caption scores higher than another caption.

    The phrases `positive` come before all captions.
    """
    captions = encoded.captions
    own, won = encoded.score(positive), []
    step = len(captions) / (OTHER_CAPTIONS + 1)
    for shift in sorted({max(1, round(k * step)) for k in range(1, OTHER_CAPTIONS + 1)}):
        rotated = [*captions[shift:], *captions[:shift]]
        differs = torch.tensor([a != b for a, b in zip(captions, rotated, strict=True)])
        won.append((own > encoded.score(positive, rotated)).cpu()[differs])
    return torch.cat(won).double().mean().item()


def bias(
    reward: Reward, examples: Examples, phrases: config.ControlPhrases
) -> dict[str, dict[str, float]]:
    """Mean change of the score by each probe of `PROBES`, over all images.

    `absolute`: of the bare prompt's score; `relative`: of pos − neg.
    """
    images = torch.cat([examples.wanted, examples.unwanted])
    captions = [*examples.wanted_prompts, *examples.unwanted_prompts]

    def scores(images: Images) -> dict[str, PerSample]:
        encoded = Encoded(reward, images, captions)
        found = {"absolute": encoded.score(), "relative": encoded.relative(phrases)}
        return {kind: each.float().cpu() for kind, each in found.items()}

    before, found = scores(images), {}
    for name, probe in PROBES.items():
        after = scores(probe(images))
        found[name] = {kind: (after[kind] - before[kind]).mean().item() for kind in before}
    return found


def feature_directions(
    reward: Reward, examples: Examples, phrases: config.ControlPhrases
) -> tuple[Vectors, Vectors] | None:
    """Intended and actual direction (n, d) in feature space at each unwanted image.

    None if features are not vectors. Both are projected on the tangent space of unit features.
    """
    there, here = (vectors(encode(reward, images)) for images, _ in examples.sides)
    if there is None or here is None:
        return None
    actual = feature_gradient(reward, here, examples.unwanted_prompts, phrases)
    return tangent(there - here, here).cpu().double(), tangent(actual, here).cpu().double()


def feature_gradient(
    reward: Reward,
    features: Vectors,
    prompts: Sequence[str],
    phrases: config.ControlPhrases,
    create_graph: bool = False,
) -> Vectors:
    """Gradient of pos − neg with respect to the image features."""
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        total = relative_score(reward, leaf, prompts, phrases).sum()
        return torch.autograd.grad(total, leaf, create_graph=create_graph)[0]


def tangent(vectors: Vectors, features: Vectors) -> Vectors:
    """Project `vectors` on the tangent space at unit `features`; unchanged if not unit length."""
    is_unit = (features.norm(dim=1) - 1).abs().max() < 1e-3
    return vectors - (vectors * features).sum(1, keepdim=True) * features if is_unit else vectors


def pixel_directions(
    reward: Reward, examples: Examples, phrases: config.ControlPhrases
) -> tuple[Vectors, Vectors]:
    """Intended and actual direction (n, d) in pixel space, averaged over blocks of pixels."""

    def coarse(images: Images) -> Tensor:
        return F.avg_pool2d(images, min(BLOCK, *images.shape[-2:])).flatten(1).double().cpu()

    actual = []
    for start in range(0, len(examples.unwanted), BATCH):
        leaf = examples.unwanted[start : start + BATCH].clone().requires_grad_()
        texts = examples.unwanted_prompts[start : start + BATCH]
        total = relative_score(reward, reward.encode(leaf), texts, phrases).sum()
        actual.append(coarse(torch.autograd.grad(total, leaf)[0]))
    return coarse(examples.wanted - examples.unwanted), torch.cat(actual)


def angle_of_means(intended: Vectors, actual: Vectors) -> dict[str, float]:
    """Angle in degrees between the mean directions, with a 95 % bootstrap interval over scenes."""

    def cosine(picks: Tensor) -> Tensor:
        return F.cosine_similarity(intended[picks].mean(-2), actual[picks].mean(-2), dim=-1)

    return _bootstrap(len(intended), cosine)


def angle_by_scene(intended: Vectors, actual: Vectors) -> dict[str, float]:
    """Angle in degrees of the mean cosine over scenes, with a 95 % bootstrap interval."""
    cosines = F.cosine_similarity(intended, actual, dim=-1)
    return _bootstrap(len(intended), lambda picks: cosines[picks].mean(-1))


def _bootstrap(n: int, cosine: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """{value, low, high, n} in degrees: reverse-percentile bootstrap with a fixed seed.

    Noise in two means widens their angle, and resampling widens it again. Reflecting the
    percentiles at the value corrects for that.
    """

    def degrees(picks: Tensor) -> Tensor:
        return torch.rad2deg(torch.acos(cosine(picks).clamp(-1, 1)))

    generator = torch.Generator().manual_seed(0)
    value = degrees(torch.arange(n)[None])[0]
    draws = (torch.randint(n, (1, n), generator=generator) for _ in range(RESAMPLES))
    resampled = torch.cat([degrees(picks) for picks in draws])
    quantiles = resampled.quantile(torch.tensor([0.975, 0.025], dtype=resampled.dtype))
    low, high = (2 * value - quantiles).clamp(0, 180).tolist()
    return {"value": value.item(), "low": low, "high": high, "n": n}
