"""What a reward that learns to listen is asked for: hear the words, keep everything else.

    respond    each desired phrase scores above each undesired one on a wanted picture, and below it on an unwanted one
    straight   pos − neg points from the unwanted picture to the wanted one of the same content (paired examples, vector features)
    hold       pos − neg keeps its length: with a wide gap the relative reward erases the object instead of changing its style
    keep       the scores of bare prompts, own and other, and the middle of pos and neg, stay what they were
    steady     pos − neg does not answer to casts and light (`nuisance`)
Scores are in units of the content margin: how far a picture's own caption lay above another one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import config
from ..interfaces import Reward
from ..types import DirectAlignError, Images, PerSample
from .direction import batches, is_vectors, pull, relative, tangent
from .examples import Examples

SHARPNESS = 1.0
"""Steepness of the logistic loss in content margins: low enough that every pair counts about alike, which is what keeps it straight."""


@dataclass(frozen=True)
class Weights:
    """Weight of each term."""

    respond: float = 0.3
    straight: float = 0.3
    hold: float = 1.0
    keep: float = 10.0
    steady: float = 3.0


@dataclass(frozen=True)
class Side:
    """Pictures of one side with their captions, another caption for each, and what the reward said of them before."""

    images: Images
    prompts: Sequence[str]
    others: Sequence[str]
    plain: PerSample
    plain_other: PerSample
    middle: PerSample


@dataclass(frozen=True)
class Seen:
    """A batch of one side: places in it, image features as they are, and under a cast (None to leave out `steady`)."""

    side: Side
    places: list[int]
    features: Any
    changed: Any | None = None


@dataclass(frozen=True)
class Told:
    """What a reward says of a batch: under each phrase (phrases, b), under the own bare caption and another one (b,)."""

    pos: Tensor
    neg: Tensor
    plain: PerSample
    other: PerSample

    @property
    def relative(self) -> PerSample:
        return self.pos.mean(0) - self.neg.mean(0)

    @property
    def middle(self) -> PerSample:
        return (self.pos.mean(0) + self.neg.mean(0)) / 2


@torch.no_grad()
def remember(reward: Reward, examples: Examples, words: config.ControlPhrases) -> tuple[Side, Side]:
    """Both sides, wanted first, with what the reward says of them now."""
    sides = (examples.wanted, examples.wanted_prompts), (examples.unwanted, examples.unwanted_prompts)
    wanted, unwanted = (_remembered(reward, images, prompts, words) for images, prompts in sides)
    return wanted, unwanted


def _remembered(reward: Reward, images: Images, prompts: Sequence[str], words: config.ControlPhrases) -> Side:
    others = [_other(prompts, place) for place in range(len(prompts))]
    seen = [reward.encode(part) for part, _ in batches(images, prompts)]

    def told(texts: Sequence[str]) -> PerSample:
        return torch.cat([reward.score(features, part) for features, (_, part) in zip(seen, batches(images, texts), strict=True)])

    middle = torch.stack([torch.stack([told(_before(phrase, prompts)) for phrase in each]).mean(0) for each in (words.positive, words.negative)]).mean(0)
    return Side(images, prompts, others, told(prompts), told(others), middle)


def _other(prompts: Sequence[str], place: int) -> str:
    """The next caption of another content; the own one where there is none."""
    after = [*prompts[place + 1 :], *prompts[:place]]
    return next((text for text in after if text != prompts[place]), prompts[place])


def _before(phrase: str, prompts: Sequence[str]) -> list[str]:
    return [f"{phrase}. {prompt}" for prompt in prompts]


def margin_of(*sides: Side) -> float:
    """The content margin: root mean square of own minus other over both sides, in the reward's units.

    Raises: DirectAlignError for a reward that scores every caption alike.
    """
    apart = torch.cat([side.plain - side.plain_other for side in sides])
    margin = apart.square().mean().sqrt().item()
    if not margin > 0:
        raise DirectAlignError("--reward: scores every caption of --images alike, so there is nothing to keep: check its weights, or give captions that differ")
    return margin


@dataclass(frozen=True)
class Objective:
    """The loss of one batch; `gap` is the length of pos − neg aimed at among image features, None where they are no vectors."""

    words: config.ControlPhrases
    weights: Weights
    margin: float
    gap: float | None
    paired: bool

    def __call__(self, reward: Reward, wanted: Seen, unwanted: Seen) -> Tensor:
        told = [self._told(reward, seen) for seen in (wanted, unwanted)]
        terms = {"respond": self._respond(*told), "keep": self._keep(wanted, told[0]) + self._keep(unwanted, told[1])}
        if wanted.changed is not None:
            terms["steady"] = self._steady(reward, wanted, told[0]) + self._steady(reward, unwanted, told[1])
        if self.gap is not None:
            terms |= self._pull(reward, wanted, unwanted)
        return torch.stack([getattr(self.weights, name) * value for name, value in terms.items()]).sum()

    def _told(self, reward: Reward, seen: Seen) -> Told:
        """Every answer about a batch, in content margins."""
        prompts, others = ([texts[i] for i in seen.places] for texts in (seen.side.prompts, seen.side.others))
        sides = [torch.stack([reward.score(seen.features, _before(phrase, prompts)) for phrase in each]) for each in (self.words.positive, self.words.negative)]
        plain, other = (reward.score(seen.features, texts) for texts in (prompts, others))
        return Told(*(each / self.margin for each in (*sides, plain, other)))

    def _respond(self, wanted: Told, unwanted: Told) -> Tensor:
        """Logistic, over all pairs of phrases: on each side, and of one side against the other."""
        here, there = (told.pos[:, None] - told.neg for told in (wanted, unwanted))
        return torch.stack([F.softplus(-SHARPNESS * each).mean() for each in (here, -there, here - there)]).sum()

    def _keep(self, seen: Seen, told: Told) -> Tensor:
        """Squared changes of the plain scores and of the middle of pos and neg."""
        side, places = seen.side, seen.places
        before = [each[places] / self.margin for each in (side.plain, side.plain_other, side.middle)]
        return (torch.stack([told.plain, told.other, told.middle]) - torch.stack(before)).square().mean()

    def _steady(self, reward: Reward, seen: Seen, told: Told) -> Tensor:
        changed = relative(reward, seen.changed, [seen.side.prompts[i] for i in seen.places], self.words)
        return (changed / self.margin - told.relative).square().mean()

    def _pull(self, reward: Reward, wanted: Seen, unwanted: Seen) -> dict[str, Tensor]:
        """Length and direction of the gradient of pos − neg at the unwanted pictures."""
        assert self.gap is not None
        there, here = wanted.features.detach(), unwanted.features.detach()
        pulled = pull(reward, here, [unwanted.side.prompts[i] for i in unwanted.places], self.words, create_graph=True)
        terms = {"hold": (pulled.norm(dim=1) / self.gap - 1).square().mean()}
        if self.paired:
            terms["straight"] = 1 - F.cosine_similarity(tangent(pulled, here), tangent(there - here, here), dim=1).mean()
        return terms


def length_of_pull(reward: Reward, side: Side, words: config.ControlPhrases) -> float | None:
    """Mean length of the gradient of pos − neg among image features; None where they are no vectors."""
    lengths = []
    for images, prompts in batches(side.images, side.prompts):
        with torch.no_grad():
            features = reward.encode(images)
        if not is_vectors(features):
            return None
        lengths.append(pull(reward, features, prompts, words).norm(dim=1))
    return torch.cat(lengths).mean().item()
