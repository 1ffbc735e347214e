"""Models whose truth is known: renders of the world, a photo with probability p, the right content with probability q, and the real judges.

A bank of renders is judged once: each caption as a photo or not, with its own content or another caption's. A simulated comparison draws
one render per image and hands the judges' answers to the comparison's own statistics. The images of one prompt are alike: a bit is 1 where
√r·z + √(1−r)·e < Φ⁻¹(p), e of the image and z of the prompt, half of it common to both models; so its rate is p for any r.

Truth: a model's rate is p; the difference of two is p_b − p_a; a pair is won, ties by half, in (1 + p_b − p_a) / 2 of all pairs.
"""

from __future__ import annotations

from ..diffusion.rng import generator_for
from ..evaluation.results import summarise
from ..metrics import JUDGED
from ..stats import resample_groups, win_rate
from ..toyworld.judges import load_judge
from ..toyworld.scenes import STYLES, all_captions, render, scenes_of
from .running.records import Row
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import torch
from jaxtyping import Bool, Float
from torch import Tensor


NUMBERS = ("photo_rate", "content")
KEYS = ("a", "b")
SIGNIFICANT = 0.05
COMMON = 0.5
"""Share of what makes a prompt hard that both models have in common."""
FAMILY = "all"
"""The name under which it is counted that any of a comparison's corrected tests speaks."""


@dataclass(frozen=True)
class Planted:
    """Two models on so many prompts and seeds of each: their rates of photos and of right content, and how alike a prompt's images are (r).

    `by_image` takes every image for a prompt of its own, as one does who forgets that images of a prompt are alike.
    """

    name: str
    title: str
    photo: tuple[float, float]
    content: tuple[float, float]
    prompts: int = 120
    seeds: int = 2
    likeness: float = 0.3
    by_image: bool = False

    def rates(self, number: str) -> tuple[float, float]:
        return self.photo if number == "photo_rate" else self.content


@dataclass(frozen=True)
class Bank:
    """What the judges say of renders: `answers`[caption, photo?, right?, variant, which of `NUMBERS`], each 0 or 1."""

    captions: Sequence[str]
    answers: Float[Tensor, "c 2 2 v 2"]

    def rows(self) -> Iterator[Row]:
        """How often the judges see what the renderer drew: the base of everything that follows."""
        for place, number in enumerate(NUMBERS):
            for drawn in (0, 1):
                seen = self.answers.select(1 + place, drawn)[..., place]
                named = {"kind": "judge", "arm": f"{number}_{drawn}", "title": number, "seed": 0}
                yield {**named, "drawn": drawn, "seen": int(seen.sum()), "renders": seen.numel()}


def rendered_bank(count: int, variants: int) -> Bank:
    """`variants` renders of each kind of the first `count` captions of the world, judged."""
    captions, judge = all_captions()[:count], load_judge()
    drawn = []
    for place in range(4 * variants):
        photo, right, variant = place // 2 % 2, place % 2, place // 4
        shown = captions if right else [captions[(index + 1 + variant) % count] for index in range(count)]
        style = "photo" if photo else STYLES[1 + variant % (len(STYLES) - 1)]
        judged = judge(render(scenes_of(shown, style), generator_for(place)), captions)
        drawn.append(torch.stack([judged[number] for number in NUMBERS], dim=-1))
    answers = torch.stack(drawn).reshape(variants, 2, 2, count, len(NUMBERS)).permute(3, 1, 2, 0, 4)
    return Bank(captions, answers)


def simulated(planted: Planted, bank: Bank, comparisons: int) -> Iterator[Row]:
    """How often the intervals of so many comparisons held the truth, and how often their tests spoke."""
    about = {number: JUDGED[number] for number in NUMBERS}
    hits: Counter[tuple[str, str]] = Counter()
    for place in range(comparisons):
        found = summarise(KEYS, lines_of(planted, bank, generator_for(place)), about)
        hits.update(held(found, planted))
        hits.update(spoke(found))
    named = {"arm": planted.name, "title": planted.title, "seed": 0, "simulated": comparisons}
    for number in NUMBERS:
        before, after = planted.rates(number)
        for of in ("rate", "difference", "win"):
            yield {"kind": "coverage", **named, "number": number, "of": of, "covered": hits[of, number]}
        yield {"kind": "test", **named, "number": number, "effect": after - before, "spoke": hits["test", number]}
    yield {"kind": "test", **named, "number": FAMILY, "effect": max(abs(b - a) for a, b in map(planted.rates, NUMBERS)), "spoke": hits["test", FAMILY]}


def power(effect: float, prompts: int, comparisons: int) -> Row:
    """How often the sign test speaks of two models whose photo rates lie `effect` apart, around one half, on two images of each prompt."""
    planted = Planted("", "", ((1 - effect) / 2, (1 + effect) / 2), (0.5, 0.5), prompts)
    groups = [image // planted.seeds for image in range(prompts * planted.seeds)]
    drawn = resample_groups(groups, resamples=1)  # the interval is not looked at
    spoken = 0
    for place in range(comparisons):
        before, after = bits(planted.photo, planted, generator_for(place)).double()
        spoken += win_rate(before, after, groups, drawn).p < SIGNIFICANT
    named = {"kind": "power", "arm": f"prompts_{prompts}", "title": f"{prompts} prompts", "seed": 0}
    return {**named, "effect": effect, "spoke": spoken, "simulated": comparisons}


def held(found: Row, planted: Planted) -> Iterator[tuple[str, str]]:
    """("rate" of the second model, "difference" or "win", number) of every interval that holds its truth."""
    for number in NUMBERS:
        before, after = planted.rates(number)
        intervals = {
            "rate": (found["models"]["b"][number], after),
            "difference": (_named(found["differences"], number), after - before),
            "win": (_named(found["wins"], number), (1 + after - before) / 2),
        }
        yield from ((of, number) for of, (interval, truth) in intervals.items() if interval["low"] - 1e-12 <= truth <= interval["high"] + 1e-12)


def spoke(found: Row) -> Iterator[tuple[str, str]]:
    """("test", number) of every sign test below `SIGNIFICANT`, and ("test", "all") where one of them still is when corrected for all."""
    yield from (("test", won["name"]) for won in found["wins"] if won["p"] < SIGNIFICANT)
    if any(won["p_holm"] < SIGNIFICANT for won in found["wins"]):
        yield "test", FAMILY


def lines_of(planted: Planted, bank: Bank, generator: torch.Generator) -> list[Row]:
    """The lines of results that a comparison of the two models would leave."""
    captions = torch.randint(len(bank.captions), (planted.prompts,), generator=generator).repeat_interleave(planted.seeds)
    prompts = [str(image if planted.by_image else image // planted.seeds) for image in range(len(captions))]
    photo, right = (bits(planted.rates(number), planted, generator).long() for number in NUMBERS)
    variants = torch.randint(bank.answers.shape[3], photo.shape, generator=generator)
    answers = bank.answers[captions, photo, right, variants].tolist()
    return [
        {"model": key, "index": index, "prompt": prompts[index], "numbers": dict(zip(NUMBERS, answers[model][index], strict=True))}
        for model, key in enumerate(KEYS)
        for index in range(len(captions))
    ]


def bits(rates: tuple[float, float], planted: Planted, generator: torch.Generator) -> Bool[Tensor, "2 n"]:
    """Yes or no of each model for each image; those of one prompt are next to each other."""
    common, own = (torch.randn(models, planted.prompts, dtype=torch.float64, generator=generator) for models in (1, 2))
    of_prompt = (COMMON**0.5 * common + (1 - COMMON) ** 0.5 * own).repeat_interleave(planted.seeds, dim=1)
    of_image = torch.randn(of_prompt.shape, dtype=torch.float64, generator=generator)
    limits = torch.special.ndtri(torch.tensor(rates, dtype=torch.float64))
    return planted.likeness**0.5 * of_prompt + (1 - planted.likeness) ** 0.5 * of_image < limits[:, None]


def _named(found: Sequence[Row], number: str) -> Row:
    return next(each for each in found if each["name"] == number)
