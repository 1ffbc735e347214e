"""Where the texts of control words lie beside each other and beside the images: cosines, and the ramp that follows from them.

With unit features the optimum of a relative reward lies along mu·(pos + neg)/2 + nu·(pos − neg): without mu, along pos − neg, where no
content is. `holding` is the mu / nu at which a step along that direction leaves the bare prompt's score as it is *at the wanted images*,
where the pull should have come to rest: to first order what the anchor does. For rewards with unit features of texts; others have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..interfaces import Reward
from ..types import DirectAlignError
from .answers import Looked, Seen

TEXTS = 48
"""Prompts at which texts are compared."""
Vectors = Float[Tensor, "b d"]


@runtime_checkable
class ReadsText(Protocol):
    """A reward whose score is a cosine of image and text features."""

    def encode_text(self, phrases: Sequence[str]) -> Tensor: ...


class Texts:
    """Unit features of phrases before the first `TEXTS` wanted prompts, each read once, and those images' own."""

    def __init__(self, reward: ReadsText, wanted: Looked) -> None:
        self.reward, self.prompts = reward, wanted.prompts[:TEXTS]
        self.images = F.normalize(torch.cat([batch.double().cpu() for batch in wanted.features])[:TEXTS], dim=-1)
        self._known: dict[str, Vectors] = {}

    @torch.no_grad()
    def read(self, phrases: Sequence[str]) -> Vectors:
        """The mean over phrases of their unit features, float64; "" is the bare prompt."""
        for phrase in phrases:
            if phrase not in self._known:
                texts = [f"{phrase}. {prompt}" if phrase else prompt for prompt in self.prompts]
                self._known[phrase] = F.normalize(self.reward.encode_text(texts).double().cpu(), dim=-1)
        return torch.stack([self._known[phrase] for phrase in phrases]).mean(0)

    def cosine(self, first: Sequence[str], second: Sequence[str]) -> float:
        """Mean cosine between the same prompts under two sets of phrases."""
        return F.cosine_similarity(self.read(first), self.read(second), dim=-1).mean().item()

    def apart(self, positive: Sequence[str], negative: Sequence[str]) -> float:
        """Mean length of pos − neg: what is left of two pulls of length 1."""
        return (self.read(positive) - self.read(negative)).norm(dim=-1).mean().item()

    def holding(self, positive: Sequence[str], negative: Sequence[str]) -> float:
        """mu / nu, 0 at least, at which the bare prompt's score stands still at the wanted images."""
        pos, neg = self.read(positive), self.read(negative)
        return holding(pos, neg, self.read([""]), self.images)


def holding(pos: Vectors, neg: Vectors, plain: Vectors, images: Vectors) -> float:
    """−⟨pos − neg, plain⟩ / ⟨(pos + neg)/2, plain⟩ in the tangent space of the unit images, means over prompts; 0 where it is negative.

    Raises DirectAlignError where the phrases pull against the prompt, so that no weight of theirs holds it.
    """
    across = plain - (plain * images).sum(-1, keepdim=True) * images
    relative, absolute = ((pos - neg) * across).sum(-1).mean(), ((pos + neg) / 2 * across).sum(-1).mean()
    if absolute <= 0:
        raise DirectAlignError("these phrases take the score away from the prompt itself: choose words that the reward reads beside a prompt")
    return max(0.0, -(relative / absolute).item())


def texts_of(reward: Reward, seen: Seen) -> Texts | None:
    """The texts of a cosine reward; None for one whose text features cannot be read apart (a VLM, ImageReward)."""
    tensors = all(isinstance(batch, Tensor) and batch.ndim == 2 for batch in seen.wanted.features)
    return Texts(reward, seen.wanted) if isinstance(reward, ReadsText) and tensors else None


def text_limit(reward: Reward) -> int | None:
    """How many tokens a CLIP-like reward reads; None where it is not known."""
    model = getattr(reward, "model", None)
    limit = getattr(getattr(getattr(model, "text_model", None), "config", None), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def is_cut(reward: Reward, seen: Seen, phrase: str) -> int:
    """How many wanted prompts are not read to their end under the phrase: without its last word the score is the same."""
    prompts = seen.wanted.prompts
    whole, shorter = (seen.wanted.score(reward, phrase, texts) for texts in (prompts, [prompt.rsplit(" ", 1)[0] for prompt in prompts]))
    several = torch.tensor([" " in prompt for prompt in prompts])
    return int((torch.isclose(whole, shorter, rtol=0, atol=1e-6 * whole.abs().max().item()) & several).sum())
