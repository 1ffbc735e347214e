"""What a recipe's rewards are made of: trained on, members of a mixture, held out. From files and configs, without weights.

As with models (see `architecture`), what lies on this machine comes first, then the published configs in families/known, and a hub id
that is neither is taken for its kind's usual model under a doubt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .. import config
from ..methods import objective
from ..rewards.common import Preprocessing
from ..rewards.hpsv3 import QUESTION
from ..rewards.qwen_vl import VlmPixels
from . import judge_parts
from .weightless import Part, built

WITHOUT_NETWORK = (config.PixelStatisticsConfig, config.HttpConfig)
"""Rewards that take no memory of this machine's device to speak of."""
PROMPT = 64
"""Tokens of phrase and prompt, where the text has no length of its own."""
LETTERS = 4
"""Of a question, to a token."""


@dataclass(frozen=True)
class Judge:
    """One reward: its network and how images reach it. `label` is its place in the recipe in words, `texts` how many phrasings keep their
    graph for a loss, `tokens` those of one text; `trained_on` is False for a held-out one."""

    label: str
    kind: str
    part: Part
    dtype: torch.dtype
    pixels: Preprocessing | VlmPixels
    recompute: bool
    texts: int
    tokens: int
    trained_on: bool = True

    def network(self) -> Any:
        """On the meta device, frozen, in the dtypes that the reward holds: HPSv3's head is float32."""
        network = built(self.part).to(self.dtype)
        if self.kind == "hpsv3":
            network.head.float()
        return network

    @property
    def held(self) -> int:
        """Bytes of all weights."""
        return sum(
            parameter.numel() * parameter.itemsize for parameter in self.network().parameters()
        )

    @property
    def count(self) -> int:
        """Numbers in all weights."""
        return sum(parameter.numel() for parameter in self.network().parameters())


@dataclass(frozen=True)
class Panel:
    """All rewards of a run that have a network here, and what is doubtful about them."""

    judges: tuple[Judge, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def trained_on(self) -> tuple[Judge, ...]:
        return tuple(judge for judge in self.judges if judge.trained_on)

    @property
    def held_out(self) -> tuple[Judge, ...]:
        return tuple(judge for judge in self.judges if not judge.trained_on)


def panel(run: config.RunConfig) -> Panel:
    """The rewards of a recipe.

    Raises:
        DirectAlignError: a folder or file that is missing, torn, or of another kind than its reward.
    """
    judges, doubts = list[Judge](), list[str]()
    for key, label, reward, method in asked(run):
        if isinstance(reward, WITHOUT_NETWORK) or (
            isinstance(reward, config.PythonConfig) and not reward.differentiable
        ):
            continue  # a black box is given images on the CPU
        if isinstance(reward, config.PythonConfig):
            doubts.append(f"{key}: memory of reward python is not in the estimate")
            continue
        found = judge_parts.found(reward, key)
        judges.append(_judge(label, reward, found, method))
        doubts += found.doubts
    return Panel(tuple(judges), tuple(doubts))


def asked(
    run: config.RunConfig,
) -> Iterator[tuple[str, str, config.SingleRewardConfig, config.ObjectiveConfig | None]]:
    """Key, label and settings of each reward, and how it is asked; held-out ones have no method."""
    if isinstance(run.reward, config.MixtureConfig):
        for place, member in enumerate(run.reward.members):
            yield (
                f"reward.members.{place}.reward",
                f"reward {member.label}",
                member.reward,
                objective.member_settings(place, member, run.method),
            )
    else:
        yield "reward", "reward", run.reward, run.method
    for label, reward in run.evaluate.rewards.items():
        yield f"evaluate.rewards.{label}", f"held out {label}", reward, None


def _judge(
    label: str, reward: Any, found: judge_parts.Found, method: config.ObjectiveConfig | None
) -> Judge:
    return Judge(
        label=label,
        kind=reward.name,
        part=found.part,
        dtype=getattr(torch, getattr(reward, "dtype", "float32")),
        pixels=found.pixels,
        recompute=reward.gradient_checkpointing,
        texts=1 if method is None else texts_of(method),
        tokens=PROMPT
        + len({"vlm": getattr(reward, "question", ""), "hpsv3": QUESTION}.get(reward.name, ""))
        // LETTERS,
        trained_on=method is not None,
    )


def texts_of(method: config.ObjectiveConfig) -> int:
    """Phrasings whose scores one loss is made of: of a list that is averaged, all."""
    sides = [method.control_phrases.positive] + (
        [method.control_phrases.negative] if method.form != "absolute" else []
    )
    phrases = sum(
        len(side) if method.control_phrases.order == "average" else min(len(side), 1)
        for side in sides
    )
    return (
        phrases + 1 if method.form == "anchored" or not method.control_phrases.positive else phrases
    )
