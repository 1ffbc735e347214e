"""What a pair of learned control tokens is fitted for, and how it is measured: every term is one of r(image, caption) = pos − neg.

    style     r of a wanted image lies above r of an unwanted one, each under its own caption
    content   r of an image lies above r of the images of other captions, on either side
    bias      r does not move when the picture is tampered with (`bias_probes`), which the reward may pay for under any words

Words have no `content`: their pos − neg says nothing of what is in the picture, so its optimum forgets that. Tokens can be given it: the
undesired ones learn to hide the caption. Terms are in units of the reward's own: how far a bare caption lies above other captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..rewards.soft_prompts import SoftPrompts
from ..types import Images
from .bias_probes import PROBES
from .examples import Examples

TEMPERATURE = 1 / 16
"""Of the logistic terms, in units of the reward: about the temperature that CLIPs are trained at."""
BATCH = 32
Features = Float[Tensor, "b d"]
Gaps = Callable[[Sequence[str]], Features]
"""From captions to what pos − neg is, in text features (b, d): its product with image features is r."""


@runtime_checkable
class Readable(Protocol):
    """A reward with a text tower of its own: unit features of images and phrases, whose product is the score over its scale."""

    name: str
    soft_prompts: SoftPrompts

    def encode(self, images: Images) -> Features: ...

    def encode_text(self, phrases: Sequence[str]) -> Features: ...


@dataclass(frozen=True)
class Side:
    """Image features of one side, their captions, and what each probe of `PROBES` changes in them, (p, b, d)."""

    features: Features
    captions: tuple[str, ...]
    moved: Float[Tensor, "p b d"]

    def of(self, places: Sequence[int]) -> Side:
        """Some of the images."""
        chosen = torch.tensor(list(places), device=self.features.device)
        return Side(self.features[chosen], tuple(self.captions[i] for i in places), self.moved[:, chosen])


@dataclass(frozen=True)
class Seen:
    """Both sides as a reward sees them; where they are `paired`, equal places have equal content."""

    wanted: Side
    unwanted: Side
    paired: bool


@dataclass(frozen=True)
class Separation:
    """What pos − neg does on some images; gaps in score units.

    `style`: mean r of wanted above that of unwanted images. `separated`: share of pairs (of equal content where there are such, else of
    all) in that order, 0.5 by chance.
    `content`: mean r of an image above that of images of other captions. `bias`: root mean square of what the probes change, over `style`.
    """

    style: float
    separated: float
    content: float
    bias: float


@torch.no_grad()
def see(reward: Readable, examples: Examples) -> Seen:
    """The images of both sides through the reward's image tower, as they are and tampered with, once."""
    wanted = _side(reward, examples.wanted, examples.wanted_prompts)
    return Seen(wanted, _side(reward, examples.unwanted, examples.unwanted_prompts), examples.paired)


def _side(reward: Readable, images: Images, captions: tuple[str, ...]) -> Side:
    def encoded(change: Callable[[Images], Images] | None) -> Features:
        parts = [part.to(reward.soft_prompts.table.weight.device) for part in images.split(BATCH)]
        return torch.cat([reward.encode(part if change is None else change(part)) for part in parts])

    plain = encoded(None)
    return Side(plain, captions, torch.stack([encoded(change) - plain for change in PROBES.values()]))


@torch.no_grad()
def unit_of(reward: Readable, seen: Seen) -> float:
    """How far the score of an image under its bare caption lies above that under the captions of others, the mean over both sides."""
    gaps = [_content_gap(_table(side, reward.encode_text(side.captions)), _others(side)) for side in (seen.wanted, seen.unwanted)]
    return float(torch.stack(gaps).mean())


def loss_of(gaps: Gaps, seen: Seen, unit: float, content: float, bias: float) -> Tensor:
    """Style, content and bias, weighed, of a batch; `unit` from `unit_of`."""
    sides, read = (seen.wanted, seen.unwanted), _read(gaps, seen)
    tables = [_table(side, each) / unit for side, each in zip(sides, read, strict=True)]
    style = F.softplus(-_apart(tables, seen.paired) / TEMPERATURE).mean()
    own = torch.stack([_own_first(table, _others(side)) for table, side in zip(tables, sides, strict=True)]).mean()
    moved = torch.stack([(_moved(side, each) / unit).square().mean() for side, each in zip(sides, read, strict=True)]).mean()
    return style + content * own + bias * moved / TEMPERATURE**2


@torch.no_grad()
def separation_of(gaps: Gaps, seen: Seen, scale: float = 1.0) -> Separation:
    """What pos − neg does, in score units (`scale` as the reward's)."""
    sides, read = (seen.wanted, seen.unwanted), _read(gaps, seen)
    tables = [_table(side, each) for side, each in zip(sides, read, strict=True)]
    apart = _apart(tables, seen.paired).double()
    content = torch.stack([_content_gap(table, _others(side)) for table, side in zip(tables, sides, strict=True)]).mean()
    bias = torch.cat([_moved(side, each).flatten() for side, each in zip(sides, read, strict=True)]).square().mean().sqrt()
    style, separated = float(apart.mean()), float((apart > 0).double().mean())
    return Separation(scale * style, separated, scale * float(content), float(bias) / abs(style) if style else float("inf"))


def _read(gaps: Gaps, seen: Seen) -> tuple[Tensor, Tensor]:
    """pos − neg under the captions of both sides, read once where they are the same."""
    wanted = gaps(seen.wanted.captions)
    return wanted, wanted if seen.unwanted.captions == seen.wanted.captions else gaps(seen.unwanted.captions)


def _table(side: Side, gaps: Features) -> Float[Tensor, "c b"]:
    """r of every image (second) under every caption (first)."""
    return gaps @ side.features.T


def _apart(tables: Sequence[Tensor], paired: bool) -> Float[Tensor, " n"]:
    """r of wanted above r of unwanted images, each under its own caption: of the pairs of equal content, or of all."""
    wanted, unwanted = (table.diagonal() for table in tables)
    return wanted - unwanted if paired else (wanted[:, None] - unwanted[None]).flatten()


def _moved(side: Side, gaps: Features) -> Float[Tensor, "p b"]:
    """What each probe adds to r of each image under its own caption."""
    return (side.moved * gaps).sum(-1)


def _others(side: Side) -> Bool[Tensor, "c b"]:
    """Which images have another caption."""
    known = {caption: place for place, caption in enumerate(side.captions)}
    places = torch.tensor([known[caption] for caption in side.captions], device=side.features.device)
    return places[:, None] != places[None]


def _own_first(table: Float[Tensor, "c b"], others: Bool[Tensor, "c b"]) -> Tensor:
    """Cross-entropy of finding a caption's own image among those of other captions."""
    own = torch.eye(len(table), dtype=torch.bool, device=table.device)
    logits = (table / TEMPERATURE).masked_fill(~(others | own), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(table), device=table.device))


def _content_gap(table: Float[Tensor, "c b"], others: Bool[Tensor, "c b"]) -> Tensor:
    return table.diagonal().mean() - table[others].mean()
