"""Control phrases: every style as target, one and several pairs, swapped signs, made-up words.

The paper finds that control words work in proportion to their frequency in the reward's training
text, and leaves open whether other pairs cancel the bias without suppressing legitimate styles.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from directalign.evaluation.generate import generate
from directalign.evaluation.scores import delivered as delivered_style
from directalign.interfaces import Reward
from directalign.rewards import load_reward
from directalign.rewards.clip import ClipReward
from directalign.toyworld.scenes import STYLE_WORDS, STYLES, render, scenes_of, train_captions
from directalign.types import PerSample
from tools.build_toyworld import reward_card

from .plots import DotColumn, dots_with_intervals
from .rows import Row, Rows, over
from .runner import Arm, folder_of, measurer_of, piece, run_arms, settings_of, sized
from .tables import DASH, MEASURED, Column, Table, means, number, with_interval

RECIPE = "world_srpo"
SEEDS = (0, 1, 2)
ASKED_PAIRS = 32
TINT = 0.1
"""Strength of the red cast that the embedded reward likes under every prompt."""
DRAWN = 51
"""Captions that are rendered in every style to see what the phrases do."""


@dataclass(frozen=True)
class Phrases:
    """Control phrases for one target style; None where they name no style of the toy world."""

    name: str
    title: str
    target: str | None
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    @property
    def arm(self) -> Arm:
        """The recipe of the anchored reward with these phrases, all of them at every update."""
        sides = {"positive": self.positive, "negative": self.negative, "order": "average"}
        overrides = (f"method.control_phrases={json.dumps(sides)}", "evaluate.every=0")
        return Arm(self.name, self.title, RECIPE, overrides)


def _towards(style: str) -> Phrases:
    """Both words of a style against the first word of every other."""
    others = tuple(STYLE_WORDS[other][0] for other in STYLES if other != style)
    return Phrases(f"to_{style}", f"to {style}", style, STYLE_WORDS[style], others)


PHOTO = STYLE_WORDS["photo"]
OTHERS = tuple(STYLE_WORDS[style][0] for style in STYLES if style != "photo")
PHRASES = (
    *map(_towards, STYLES),
    Phrases("one_pair", "one pair", "photo", PHOTO[:1], OTHERS[:1]),
    Phrases("swapped", "signs swapped", None, OTHERS, PHOTO),
    Phrases("rare", "rare word", None, ("Neon",), OTHERS),
    Phrases("nonsense", "nonsense word", None, ("Flarn",), OTHERS),
    Phrases("rare_mixed", "rare and photo words", "photo", ("Neon", *PHOTO), OTHERS),
)
"""Rare words are short: the reward reads 16 tokens, and a spelled word would cut the prompt off."""
QUICK_NAMES = ("to_photo", "to_anime")


def measure(out: Path, quick: bool) -> list[Row]:
    """Train with all phrases, ask each model for every style, measure the phrases with the reward.

    Quick: two choices of phrases, one seed.
    """
    phrases = [each for each in PHRASES if not quick or each.name in QUICK_NAMES]
    arms, seeds = sized([each.arm for each in phrases], quick), SEEDS[:1] if quick else SEEDS
    count, styles = (4, STYLES[:2]) if quick else (ASKED_PAIRS, STYLES)
    rows = run_arms("control_phrases", arms, seeds, out)
    for arm in arms:
        for seed in seeds:
            settings, folder = settings_of(arm, seed), folder_of(arm, seed, out)
            make = partial(styles_in_prompts, "control_phrases", arm, seed, folder, styles, count)
            rows += piece(out, f"asked-{arm.name}-seed{seed}", settings, make)
    settings, base = settings_of(arms[0], 0), Arm("base", "base model", RECIPE)
    make = partial(
        styles_in_prompts, "control_phrases", base, 0, folder_of(arms[0], 0, out), styles, count
    )
    rows += piece(out, "asked-base", settings, make)
    return rows + piece(out, "facts", settings, lambda: _facts(phrases, settings.reward))


def styles_in_prompts(
    study: str, arm: Arm, seed: int, folder: Path, styles: Sequence[str], count: int
) -> list[Row]:
    """One row per style: rates of that style and of content when the prompt asks for the style."""
    measurer = measurer_of(folder, base=arm.name == "base")
    pairs, run, rows = measurer.pairs.first(count), measurer.run, []
    named = {"study": study, "kind": "asked", "seed": seed}
    named |= {"arm": arm.name, "title": arm.title}
    for style in styles:
        asked, size = pairs.asked(STYLE_WORDS[style][0]), run.evaluate.batch_size
        images = generate(measurer.model, asked.prompts, asked.seeds, run.rollout, size)
        judged = measurer.per_image(images)
        seen = delivered_style(judged, asked.prompts)
        answers = {"delivered": seen, "content": judged["content"]}
        rates = {name: answer.double().mean().item() for name, answer in answers.items()}
        rows.append({**named, "asked": style, "pairs": count, **rates})
    return rows


# --- phrases and the reward alone -----------------------------------------------------------------


@dataclass(frozen=True)
class Renders:
    """Image features of `captions` rendered in every style, plain and under a red cast."""

    captions: list[str]
    plain: dict[str, Any]
    cast: dict[str, Any]


@torch.no_grad()
def renders_for(reward: Reward) -> Renders:
    """A spread of the training captions, one fixed draw of place, light and texture."""
    captions = train_captions()[:: len(train_captions()) // DRAWN]
    plain, cast = {}, {}
    for style in STYLES:
        images = render(scenes_of(captions, style), torch.Generator().manual_seed(0))
        plain[style] = reward.encode(images)
        tint = torch.full((len(images),), TINT)
        cast[style] = reward.encode(reward_card.retouch(images, tint=tint))
    return Renders(captions, plain, cast)


@torch.no_grad()
def facts_of(phrases: Phrases, reward: Reward, renders: Renders) -> dict[str, float]:
    """What the phrases do before any training.

    `gap_STYLE`: mean pos − neg of true images of a style. `tint_pos`, `tint_relative`: what a red
    cast adds to pos, and to pos − neg. `cancelled`: 1 − |tint_relative| / |tint_pos|, the share of
    the bias that the difference cancels (negative where it adds to it).
    """

    def scores(features: Any) -> tuple[PerSample, PerSample]:
        """(pos, pos − neg), means over the phrases of a side."""
        sides = []
        for side in (phrases.positive, phrases.negative):
            texts = [[f"{p}. {text}" for text in renders.captions] for p in side]
            each = [reward.score(features, prompts) for prompts in texts]
            sides.append(torch.stack(each).mean(0).double())
        return sides[0], sides[0] - sides[1]

    plain = {style: scores(features) for style, features in renders.plain.items()}
    cast = {style: scores(features) for style, features in renders.cast.items()}
    tint_pos, tint_relative = (
        torch.stack([cast[style][place] - plain[style][place] for style in STYLES]).mean().item()
        for place in (0, 1)
    )
    gaps = {f"gap_{style}": relative.mean().item() for style, (_, relative) in plain.items()}
    tints = {"tint_pos": tint_pos, "tint_relative": tint_relative}
    return {**gaps, **tints, "cancelled": 1 - abs(tint_relative) / abs(tint_pos)}


@torch.no_grad()
def text_cosine(phrases: Phrases, reward: ClipReward) -> float:
    """Mean cosine between a prompt under the positive and under the negative phrases."""
    captions = train_captions()[::4]

    def read(side: tuple[str, ...]) -> Tensor:
        texts = [[f"{phrase}. {caption}" for caption in captions] for phrase in side]
        return torch.stack([reward_card.read(reward.model, reward.tokenizer, t) for t in texts])

    pairs = torch.einsum("pcd,ncd->pnc", read(phrases.positive), read(phrases.negative))
    return pairs.mean().item()


def _facts(phrases: Sequence[Phrases], settings: Any) -> list[Row]:
    reward = load_reward(settings)
    renders, rows = renders_for(reward), []
    for each in phrases:
        named = {"study": "control_phrases", "kind": "facts", "arm": each.name, "title": each.title}
        numbers = facts_of(each, reward, renders)
        rows.append({**named, "seed": 0, "target": each.target, **numbers})
    return rows


# --- tables and figures ---------------------------------------------------------------------------


def tables(rows: Rows) -> dict[str, Table]:
    facts = {row["arm"]: row for row in rows.where(kind="facts")}
    runs = rows.runs
    begun = runs.base
    columns = [Column(f"style_{style}", style, 2) for style in STYLES]
    columns += [Column(each.key, each.title, 2) for each in MEASURED[1:]]
    targets, biases = [], []
    for arm, fact in facts.items():
        last, key = runs.last(arm), f"style_{fact['target']}"
        reached = [number(begun.get(key)), with_interval(over(last, key), 2)]
        targets.append([fact["title"], fact["target"] or DASH, *reached, *means(columns, last)])
        preferred = max(STYLES, key=lambda style: fact[f"gap_{style}"])
        bias = [number(fact[name], 3) for name in ("tint_pos", "tint_relative", "cancelled")]
        biases.append([fact["title"], *bias, preferred])
    styles = list(dict.fromkeys(row["asked"] for row in rows.where(kind="asked")))
    titles = {row["arm"]: row["title"] for row in rows.where(kind="asked")}
    asked = [
        [titles[arm], *(with_interval(delivered(rows, arm, style), 2) for style in styles)]
        for arm in ("base", *facts)
    ]
    names = ["words", "target", "target before", "target after", *(each.title for each in columns)]
    cast = ["words", "cast adds to pos", "cast adds to pos − neg", "cancelled", "prefers"]
    return {
        "target_style": Table(names, targets),
        "bias_cancelled": Table(cast, biases),
        "style_in_prompt": Table(["words", *(f"{style} in prompt" for style in styles)], asked),
    }


def delivered(rows: Rows, arm: str, style: str) -> Any:
    """Rate of a style that the prompt asks for, over seeds."""
    return over(rows.where(kind="asked", arm=arm, asked=style), "delivered")


def draw(rows: Rows, folder: Path) -> list[Path]:
    facts, runs = {row["arm"]: row for row in rows.where(kind="facts")}, rows.runs

    def after(title: str, key: str, percent: bool = True) -> DotColumn:
        values = {arm: over(runs.last(arm), key) for arm in facts}
        return DotColumn(title, values, percent=percent, at=runs.base[key])

    none = {"low": None, "high": None}
    shares = {arm: {"value": fact["cancelled"], **none} for arm, fact in facts.items()}
    asked = []
    for style in dict.fromkeys(row["asked"] for row in rows.where(kind="asked")):
        values = {arm: delivered(rows, arm, style) for arm in ("base", *facts)}
        asked.append(DotColumn(f"{style} in prompt", values, percent=True))
    price = [after("content", "content"), after("colour drift", "color_drift", percent=False)]
    price += [DotColumn("bias cancelled", shares, percent=True)]
    plain = [after(style, f"style_{style}") for style in STYLES]
    note = "Plain prompts, after training; the dashed line is the base model."
    figures = {
        "styles": ("Style of the images", plain, note),
        "price": ("Content, drift and bias", price, note),
        "asked": ("A style that the prompt asks for", asked, ""),
    }
    files = {name: folder / f"control_phrases_{name}.png" for name in figures}
    return [dots_with_intervals(files[name], *figure) for name, figure in figures.items()]
