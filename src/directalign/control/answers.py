"""What a reward answers under a phrase: for wanted and unwanted images, under other captions, and when the picture is tampered with.

Answers are linear in the score, so a set of phrases is the mean of theirs, and a pair the difference (`minus`): every question about
words is asked of one table, and the reward sees each image once. Features may be of any kind: they are kept in the batches of `encode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..interfaces import Reward
from ..types import DirectAlignError, Images
from .bias_probes import PROBES
from .examples import Examples

BATCH = 32
OTHER_CAPTIONS = 4
"""How many other captions every wanted image is scored under."""


@dataclass(frozen=True)
class Looked:
    """Images as a reward sees them, batch by batch, with their prompts."""

    features: tuple[Any, ...]
    sizes: tuple[int, ...]
    prompts: tuple[str, ...]

    def score(self, reward: Reward, phrase: str, prompts: Sequence[str] | None = None) -> Float[Tensor, " b"]:
        """float64 scores under "{phrase}. {prompt}", or the bare prompt for an empty phrase; `prompts` replaces the images' own."""
        texts = [f"{phrase}. {prompt}" if phrase else prompt for prompt in prompts or self.prompts]
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        parts = [reward.score(batch, texts[a : a + n]) for batch, a, n in zip(self.features, starts, self.sizes, strict=True)]
        return torch.cat(parts).double().cpu()


@dataclass(frozen=True)
class Seen:
    """Everything that is shown to a reward, encoded once. `mixed` are images of both sides, `probed` the same ones tampered with."""

    wanted: Looked
    unwanted: Looked
    mixed: Looked
    probed: dict[str, Looked]
    others: tuple[tuple[str, ...], ...]
    """Other captions for the wanted images, rotated; empty where all captions are the same."""
    paired: bool


@dataclass(frozen=True)
class Answers:
    """Scores under one phrase, one blend of phrases, or one difference; float64.

    `others` are the wanted images' scores under other captions, `moved` what each probe adds to the scores of the mixed images.
    """

    wanted: Float[Tensor, " n"]
    unwanted: Float[Tensor, " m"]
    others: Float[Tensor, "k n"]
    moved: Float[Tensor, "probes b"]

    def minus(self, other: Answers) -> Answers:
        """The difference of two."""
        return Answers(self.wanted - other.wanted, self.unwanted - other.unwanted, self.others - other.others, self.moved - other.moved)

    @property
    def content(self) -> float | None:
        """How much more a wanted image gets under its own caption than under another: the mean; None with one caption alone."""
        return (self.wanted - self.others).mean().item() if len(self.others) else None


def blend(parts: Sequence[Answers]) -> Answers:
    """The mean over phrases, as `words.order: average` asks."""

    def middle(name: str) -> Tensor:
        return torch.stack([getattr(part, name) for part in parts]).mean(0)

    return Answers(middle("wanted"), middle("unwanted"), middle("others"), middle("moved"))


@torch.no_grad()
def look(reward: Reward, examples: Examples, device: torch.device | str = "cpu") -> Seen:
    """Encode the examples and their probed versions.

    Raises DirectAlignError for fewer than two images a side, whose spread is not known.
    """
    if min(len(examples.wanted), len(examples.unwanted)) < 2:
        raise DirectAlignError(f"--images: {len(examples.wanted)} wanted and {len(examples.unwanted)} unwanted images; an interval needs two of each at least")

    def looked(images: Images, prompts: tuple[str, ...]) -> Looked:
        batches = images.split(BATCH)
        return Looked(tuple(reward.encode(batch.to(device)) for batch in batches), tuple(map(len, batches)), prompts)

    images = torch.cat([examples.wanted[::2], examples.unwanted[1::2]])
    prompts = (*examples.wanted_prompts[::2], *examples.unwanted_prompts[1::2])
    return Seen(
        looked(examples.wanted, examples.wanted_prompts),
        looked(examples.unwanted, examples.unwanted_prompts),
        looked(images, prompts),
        {name: looked(probe(images), prompts) for name, probe in PROBES.items()},
        _others(examples.wanted_prompts),
        examples.paired,
    )


def _others(prompts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The next captions that differ from each image's own, in turn."""
    distinct = list(dict.fromkeys(prompts))
    place = {prompt: index for index, prompt in enumerate(distinct)}
    shifts = range(1, min(OTHER_CAPTIONS, len(distinct) - 1) + 1)
    return tuple(tuple(distinct[(place[prompt] + shift) % len(distinct)] for prompt in prompts) for shift in shifts)


@torch.no_grad()
def answers(reward: Reward, seen: Seen, phrase: str) -> Answers:
    """What the reward says under one phrase ("" for the bare prompt)."""
    wanted, mixed = seen.wanted.score(reward, phrase), seen.mixed.score(reward, phrase)
    others = [seen.wanted.score(reward, phrase, prompts) for prompts in seen.others]
    moved = [probed.score(reward, phrase) - mixed for probed in seen.probed.values()]
    return Answers(wanted, seen.unwanted.score(reward, phrase), torch.stack(others) if others else torch.zeros(0, len(wanted)).double(), torch.stack(moved))
