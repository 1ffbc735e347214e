"""The comparison: who wins on the toy world, and do its 95 % intervals cover the truth?

Renders stand in for models that show a photo with probability p and the right content with
probability q, judged and compared as real ones. A bank of renders is judged once: each caption as a
photo or not, with its own content or another caption's. Images of one prompt are correlated: a bit
is 1 where √r·z + √(1−r)·e < Φ⁻¹(p), e of the image, z of the prompt, half of it common to both
models; so its rate is p for any r. The difference of two models is p_b − p_a, and a pair is won,
ties by half, in (1 + p_b − p_a) / 2 of all pairs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from directalign.config import RunConfig
from directalign.diffusion.rng import generator_for
from directalign.evaluation.compare import SUMMARY, Request, compare
from directalign.evaluation.results import summarise
from directalign.metrics import JUDGED
from directalign.stats import resample_groups, wilson_interval, win_rate
from directalign.toyworld.judges import load_judge
from directalign.toyworld.scenes import STYLES, all_captions, render, scenes_of
from directalign.training.run_folder import commit, machine, versions

from .plots import DotColumn, Line, Panel, curves, dots_with_intervals, title_of
from .rows import Row, Rows
from .runner import Arm, piece, run_arm, settings_of, sized
from .tables import DASH, Table, number, with_interval

SEEDS = (0, 1, 2)
ARMS = tuple(
    Arm(name, title_of(name), f"world_{name}", ("evaluate.every=0",))
    for name in ("direct_align", "refl", "srpo")
)
QUICK_ARMS = ("direct_align", "srpo")
HELD_OUT = "second={name: clip, path: 'world:second_reward'}"
IMAGES, QUICK_IMAGES = 240, 8
"""Of each model in a comparison, two per prompt."""
SIMULATED, QUICK_SIMULATED = 1000, 4
CAPTIONS, VARIANTS = 240, 4
NUMBERS, KEYS = ("photo_rate", "content"), ("a", "b")
SIGNIFICANT, NOMINAL = 0.05, 0.95
COMMON = 0.5
"""Share of a prompt's difficulty that both models have in common."""
ANY = "all"
"""Counts whether any test of a comparison is significant after correction."""
EFFECTS, PROMPTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3), (30, 120, 480)


@dataclass(frozen=True)
class Planted:
    """Two models: rates of photos and of right content, prompts, seeds per prompt, correlation r.

    `by_image` treats every image as a prompt of its own, which ignores the correlation.
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


MANY_SEEDS = ((0.4, 0.6), (0.9, 0.8), 40, 8, 0.5)
PLANTED = (
    Planted("equal", "equal models", (0.5, 0.5), (0.9, 0.9)),
    Planted("slight", "slightly apart", (0.45, 0.55), (0.95, 0.9)),
    Planted("far", "far apart", (0.2, 0.8), (0.97, 0.85)),
    Planted("rare", "rates near 0 and 1", (0.02, 0.05), (0.99, 0.97)),
    Planted("few", "16 prompts alone", (0.3, 0.6), (0.9, 0.8), prompts=16),
    Planted("many_seeds", "8 seeds a prompt", *MANY_SEEDS),
    Planted("by_image", "8 seeds a prompt, counted by image", *MANY_SEEDS, by_image=True),
)


def measure(out: Path, quick: bool) -> list[Row]:
    """Train and compare, then simulate; quick: two arms, one seed, two updates, few simulations."""
    arms = sized([arm for arm in ARMS if not quick or arm.name in QUICK_ARMS], quick)
    images, rows = QUICK_IMAGES if quick else IMAGES, []
    for seed in SEEDS[:1] if quick else SEEDS:
        rows += compare_runs(arms, seed, out, images)
    return rows + simulate(out, quick, settings_of(arms[0], 0))


def compare_runs(arms: list[Arm], seed: int, out: Path, images: int) -> list[Row]:
    """A row per pair of models and number, of the runs of one seed."""
    sources = tuple(f"{arm.name}={run_arm(arm, seed, out)}" for arm in arms)
    where = {"commit": commit(), "machine": machine(), "versions": versions()}
    settings = {"base": True, "num_samples": images, "rewards": (HELD_OUT,), "where": where}
    made = compare(Request(sources, out / "comparisons" / f"seed{seed}", **settings))
    named, rows = {"study": "coverage", "kind": "wins", "seed": seed}, []
    for won in json.loads((made / SUMMARY).read_text(encoding="utf-8"))["wins"]:
        rows.append({**named, "arm": won["b"], "title": title_of(won["b"]), **won, **where})
    return rows


def simulate(out: Path, quick: bool, settings: RunConfig) -> list[Row]:
    """Everything simulated, piece by piece."""
    bank = rendered_bank(*((8, 1) if quick else (CAPTIONS, VARIANTS)))
    count = QUICK_SIMULATED if quick else SIMULATED
    pieces = {"judges": bank.rows}
    pieces |= {f"planted-{each.name}": partial(simulated, each, bank, count) for each in PLANTED}
    grid = list(product(PROMPTS, EFFECTS))
    pieces |= {"power": lambda: [power(effect, prompts, count) for prompts, effect in grid]}
    return [
        {"study": "coverage", **row}
        for name, make in pieces.items()
        for row in piece(out, name, settings, make)
    ]


# --- comparisons of models with known rates -------------------------------------------------------


@dataclass(frozen=True)
class Bank:
    """`answers`[caption, photo?, right?, variant, which of `NUMBERS`], each 0 or 1."""

    captions: Sequence[str]
    answers: Float[Tensor, "c 2 2 v 2"]

    def rows(self) -> Iterator[Row]:
        """How often the judges see what was rendered."""
        for place, name in enumerate(NUMBERS):
            for drawn in (0, 1):
                seen = self.answers.select(1 + place, drawn)[..., place]
                named = {"kind": "judge", "arm": f"{name}_{drawn}", "title": name, "seed": 0}
                counts = {"seen": int(seen.sum()), "renders": seen.numel()}
                yield {**named, "drawn": drawn, **counts}


def rendered_bank(count: int, variants: int) -> Bank:
    """`variants` renders of each kind of the first `count` captions, judged."""
    captions, judge, drawn = all_captions()[:count], load_judge(), []
    for place in range(4 * variants):
        photo, right, variant = place // 2 % 2, place % 2, place // 4
        shift = 0 if right else 1 + variant
        shown = [captions[(index + shift) % count] for index in range(count)]
        style = "photo" if photo else STYLES[1 + variant % (len(STYLES) - 1)]
        judged = judge(render(scenes_of(shown, style), generator_for(place)), captions)
        drawn.append(torch.stack([judged[name] for name in NUMBERS], dim=-1))
    answers = torch.stack(drawn).reshape(variants, 2, 2, count, len(NUMBERS))
    return Bank(captions, answers.permute(3, 1, 2, 0, 4))


def simulated(planted: Planted, bank: Bank, comparisons: int) -> Iterator[Row]:
    """How often intervals covered the truth and tests were significant in so many comparisons."""
    about = {name: JUDGED[name] for name in NUMBERS}
    hits: Counter[tuple[str, str]] = Counter()
    for place in range(comparisons):
        found = summarise(KEYS, lines_of(planted, bank, generator_for(place)), about)
        hits.update(hits_of(found, planted))
    named = {"arm": planted.name, "title": planted.title, "seed": 0, "simulated": comparisons}
    effects = {name: after - before for name in NUMBERS for before, after in [planted.rates(name)]}
    for name, of in product(NUMBERS, OF):
        yield {"kind": "coverage", **named, "number": name, "of": of, "covered": hits[of, name]}
    for name, effect in (*effects.items(), (ANY, max(map(abs, effects.values())))):
        counts = {"effect": effect, "spoke": hits["test", name]}
        yield {"kind": "test", **named, "number": name, **counts}


def hits_of(found: Row, planted: Planted) -> Iterator[tuple[str, str]]:
    """Intervals that cover the truth and significant sign tests of a comparison.

    (of, number), where `of` is "rate" (of the second model), "difference" or "win"; ("test",
    number); ("test", "all") if any test is significant after correction.
    """
    for name in NUMBERS:
        before, after = planted.rates(name)
        tables = ("differences", "wins")
        delta, won = (next(x for x in found[table] if x["name"] == name) for table in tables)
        intervals = {
            "rate": (found["models"]["b"][name], after),
            "difference": (delta, after - before),
            "win": (won, (1 + after - before) / 2),
        }
        for of, (interval, truth) in intervals.items():
            if interval["low"] - 1e-12 <= truth <= interval["high"] + 1e-12:
                yield of, name

    yield from (("test", won["name"]) for won in found["wins"] if won["p"] < SIGNIFICANT)
    yield from [("test", ANY)] * any(won["p_holm"] < SIGNIFICANT for won in found["wins"])


def power(effect: float, prompts: int, comparisons: int) -> Row:
    """How often the sign test finds photo rates `effect` apart, on two images a prompt."""
    rates = ((1 - effect) / 2, (1 + effect) / 2)
    planted = Planted("", "", rates, (0.5, 0.5), prompts)
    groups = [image // planted.seeds for image in range(prompts * planted.seeds)]
    drawn, found = resample_groups(groups, resamples=1), 0  # the interval is not used
    for place in range(comparisons):
        before, after = bits(planted.photo, planted, generator_for(place)).double()
        found += win_rate(before, after, groups, drawn).p < SIGNIFICANT
    named = {"kind": "power", "arm": f"prompts_{prompts}", "title": f"{prompts} prompts", "seed": 0}
    return {**named, "effect": effect, "spoke": found, "simulated": comparisons}


def lines_of(planted: Planted, bank: Bank, generator: torch.Generator) -> list[Row]:
    """The result lines that a comparison of the two models would write."""
    captions = torch.randint(len(bank.captions), (planted.prompts,), generator=generator)
    captions = captions.repeat_interleave(planted.seeds)
    step = 1 if planted.by_image else planted.seeds
    photo, right = (bits(planted.rates(name), planted, generator).long() for name in NUMBERS)
    variants = torch.randint(bank.answers.shape[3], photo.shape, generator=generator)
    answers, lines = bank.answers[captions, photo, right, variants].tolist(), []
    for (model, key), index in product(enumerate(KEYS), range(len(captions))):
        numbers = dict(zip(NUMBERS, answers[model][index], strict=True))
        prompt = str(index // step)
        lines.append({"model": key, "index": index, "prompt": prompt, "numbers": numbers})
    return lines


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal draws in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def bits(
    rates: tuple[float, float], planted: Planted, generator: torch.Generator
) -> Bool[Tensor, "2 n"]:
    """Yes or no of each model for each image; images of one prompt are adjacent."""
    common, own = (normal(generator, models, planted.prompts) for models in (1, 2))
    of_prompt = COMMON**0.5 * common + (1 - COMMON) ** 0.5 * own
    of_prompt = of_prompt.repeat_interleave(planted.seeds, dim=1)
    of_image = normal(generator, *of_prompt.shape)
    limits = torch.special.ndtri(torch.tensor(rates, dtype=torch.float64))
    drawn = planted.likeness**0.5 * of_prompt + (1 - planted.likeness) ** 0.5 * of_image
    return drawn < limits[:, None]


# --- tables and figures ---------------------------------------------------------------------------

SHOWN = {
    "photo_rate": "photo rate",
    "content": "content",
    "score_second": "held-out reward",
    "base_color_shift": "colour shift from the base",
}
DUELS = [("base", arm.name) for arm in ARMS] + [("direct_align", "srpo"), ("refl", "srpo")]
OF = {"rate": "rate", "difference": "difference of two", "win": "win rate"}


def share(row: Row, key: str) -> dict[str, float]:
    """How often something happened in simulations, with a 95 % binomial interval."""
    return wilson_interval(row[key] / row["simulated"], row["simulated"]).as_dict()


def tables(rows: Rows) -> dict[str, Table]:
    titles = {"base": "base model", **rows.where(kind="wins").arms}
    duels, intervals, powers = [], [], []
    for a, b in (pair for pair in DUELS if set(pair) <= set(titles)):
        cells = [duel(rows.where(kind="wins", a=a, b=b, name=name)) for name in SHOWN]
        duels.append([f"{titles[b]} against {titles[a]}", *cells])

    def percent(row: Row, key: str) -> str:
        return with_interval(share(row, key), 1, percent=True)

    found = rows.where(kind="coverage")
    for (arm, title), name in product(found.arms.items(), NUMBERS):
        of = {row["of"]: row for row in found.where(arm=arm, number=name)}
        intervals.append([title, SHOWN[name], *(percent(of[key], "covered") for key in OF)])
    curve = rows.where(kind="power")
    effects = sorted({row["effect"] for row in curve})
    for arm, title in curve.arms.items():
        by_effect = {row["effect"]: row for row in curve.where(arm=arm)}
        shares = [share(by_effect[effect], "spoke")["value"] for effect in effects]
        powers.append([title, *(f"{number(100 * value, 1)} %" for value in shares)])
    points = [f"{number(100 * effect, 0)} points" for effect in effects]
    return {
        "win_rates": Table(["of two models", *SHOWN.values()], duels),
        "intervals": Table(["planted", "number", *OF.values()], intervals),
        "power": Table(["prompts", *points], powers),
    }


def duel(found: Rows) -> str:
    """Mean win rate over seeds with the hull of their intervals; seeds with a significant test."""
    if not found:
        return DASH
    mean = sum(row["value"] for row in found) / len(found)
    low, high = min(row["low"] for row in found), max(row["high"] for row in found)
    clear = sum(row["p_holm"] < SIGNIFICANT for row in found)
    interval = with_interval({"value": mean, "low": low, "high": high})
    return f"{interval}, {clear} of {len(found)}"


def draw(rows: Rows, folder: Path) -> list[Path]:
    found, curve = rows.where(kind="coverage"), rows.where(kind="power")
    columns = []
    for name, of in product(NUMBERS, ("rate", "win")):
        each = found.where(of=of, number=name)
        shares = {row["arm"]: share(row, "covered") for row in each}
        columns.append(DotColumn(f"{OF[of]}, {SHOWN[name]}", shares, percent=True, at=NOMINAL))
    note = "How often 95 % intervals cover the truth of the renderer, with binomial intervals."
    names = found.arms | {"by_image": "8 seeds, by image"}
    file, title = folder / "coverage_coverage.png", "Coverage of the comparison's intervals"
    first = dots_with_intervals(file, title, columns, note, titles=names)
    lines = []
    for arm in curve.arms:
        mine = sorted(curve.where(arm=arm), key=lambda row: row["effect"])
        shares = [share(row, "spoke") for row in mine]
        y, low, high = ([each[key] for each in shares] for key in ("value", "low", "high"))
        lines.append(Line(arm, [row["effect"] for row in mine], y, low, high))
    title = "share of comparisons in which the sign test is significant"
    panel = Panel(title, "difference of photo rates", "significant", lines, percent=True)
    file, title = folder / "coverage_power.png", "Power of the sign test, two images a prompt"
    note = "With binomial intervals."
    return [first, curves(file, title, [panel], note, titles=curve.arms)]
