"""The control words that the study `words` trains with, and what each pair does before any training: how far apart its texts lie,
which styles it prefers, and how much of a bias that no word asks for cancels in pos − neg."""

from __future__ import annotations

from ..data.prompts import train_captions
from ..interfaces import Reward
from ..rewards.clip import ClipReward
from ..toyworld.scenes import STYLE_WORDS, STYLES, render, scenes_of
from ..types import Images, PerSample
from ..world.build import reward_card
from .running.records import Arm
import json
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor


TINT = 0.1
"""Strength of the red cast that the embedded reward likes under every prompt."""
RECIPE = "world_srpo"
DRAWN = 51
"""Captions that are drawn in every style to see what the words do."""


@dataclass(frozen=True)
class Wording:
    """Control words for one target style; `target` is None where the words name no style of the world."""

    name: str
    title: str
    target: str | None
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    @property
    def arm(self) -> Arm:
        """The recipe of the anchored reward with these words, all of them at every update."""
        words = json.dumps({"positive": self.positive, "negative": self.negative, "order": "average"})
        return Arm(self.name, self.title, RECIPE, (f"method.words={words}", "evaluate.every=0"))


def _towards(style: str) -> Wording:
    """Both words of a style against the first word of every other."""
    others = tuple(STYLE_WORDS[other][0] for other in STYLES if other != style)
    return Wording(f"to_{style}", f"to {style}", style, STYLE_WORDS[style], others)


PHOTO, OTHERS = STYLE_WORDS["photo"], tuple(STYLE_WORDS[style][0] for style in STYLES if style != "photo")
WORDINGS = (
    *map(_towards, STYLES),
    Wording("one_pair", "one pair", "photo", PHOTO[:1], OTHERS[:1]),
    Wording("swapped", "signs swapped", None, OTHERS, PHOTO),
    Wording("rare", "rare word", None, ("Neon",), OTHERS),
    Wording("nonsense", "nonsense word", None, ("Flarn",), OTHERS),
    Wording("rare_mixed", "rare and photo words", "photo", ("Neon", *PHOTO), OTHERS),
)
"""Rare and made-up words are short: the reward reads 16 tokens, and a word that it must spell would cut the end of the prompt off."""


@dataclass(frozen=True)
class Seen:
    """What a reward sees of fresh renders of `captions` in every style, as they are and under a red cast: its image features by style."""

    captions: list[str]
    plain: dict[str, Any]
    cast: dict[str, Any]


@torch.no_grad()
def seen_by(reward: Reward) -> Seen:
    """Renders of a spread of the training captions, one fixed draw of place, light and texture for all styles."""
    captions = train_captions()[:: len(train_captions()) // DRAWN]
    drawn = {style: render(scenes_of(captions, style), torch.Generator().manual_seed(0)) for style in STYLES}
    plain = {style: reward.encode(images) for style, images in drawn.items()}
    return Seen(captions, plain, {style: reward.encode(tinted(images)) for style, images in drawn.items()})


@torch.no_grad()
def facts_of(wording: Wording, reward: Reward, seen: Seen) -> dict[str, float]:
    """What the words do before any training, with the reward alone.

    `gap_STYLE`: mean pos − neg of true pictures of a style. `tint_pos`, `tint_relative`: what a red cast adds to the score under
    the positive words, and to pos − neg. `cancelled`: 1 − |tint_relative| / |tint_pos|, the share of the bias that the difference
    cancels (below 0 where it adds to it).
    """
    plain = {style: _answers(wording, reward, features, seen.captions) for style, features in seen.plain.items()}
    cast = {style: _answers(wording, reward, features, seen.captions) for style, features in seen.cast.items()}
    tint_pos, tint_relative = (torch.stack([cast[style][place] - plain[style][place] for style in STYLES]).mean().item() for place in (0, 1))
    gaps = {f"gap_{style}": relative.mean().item() for style, (_, relative) in plain.items()}
    return {**gaps, "tint_pos": tint_pos, "tint_relative": tint_relative, "cancelled": cancelled(tint_pos, tint_relative)}


def text_cosine(wording: Wording, reward: ClipReward) -> float:
    """Mean cosine between a prompt under the positive words and the same prompt under the negative ones: near 1 is a narrow gap."""
    captions = train_captions()[::4]

    def read(words: tuple[str, ...]) -> Tensor:
        return torch.stack([reward_card.read(reward.model, reward.tokenizer, [f"{word}. {caption}" for caption in captions]) for word in words])

    with torch.no_grad():
        pairs = torch.einsum("pcd,ncd->pnc", read(wording.positive), read(wording.negative))
    return pairs.mean().item()


def cancelled(absolute: float, relative: float) -> float:
    """The share of a common bias that is gone in the difference: 1 when nothing is left, 0 when all is, negative when it grew."""
    return 1 - abs(relative) / abs(absolute)


def tinted(images: Images) -> Images:
    """The images under a red cast of strength `TINT`."""
    return reward_card.retouch(images, torch.full((len(images),), TINT), torch.zeros(len(images)))


def _answers(wording: Wording, reward: Reward, features: Any, captions: list[str]) -> tuple[PerSample, PerSample]:
    """(pos, pos − neg), means over the words of a side."""

    def score(words: tuple[str, ...]) -> PerSample:
        return torch.stack([reward.score(features, [f"{word}. {caption}" for caption in captions]) for word in words]).mean(0).double()

    pos = score(wording.positive)
    return pos, pos - score(wording.negative)
