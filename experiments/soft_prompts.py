"""Learned control tokens (soft prompts) against control phrases, left open by the paper.

Two sets of tokens are fitted on a few dozen renders: one separates the styles only, with the other
pos − neg also depends on what the caption names. They lie in OUT/tokens, fitted for every seed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from directalign import config
from directalign.reward_analysis.images import load_examples
from directalign.reward_analysis.soft_prompts import SoftPromptConfig, fit_soft_prompts
from directalign.rewards import load_reward
from directalign.rewards.soft_prompts import write_tokens

from .plots import curves, panels_over_updates
from .rows import Row, Rows, mean_interval, mean_of
from .runner import Arm, piece, run_arms, settings_of, sized
from .tables import MEASURED, Column, Table, means, with_interval

RECIPE = "world_srpo"
SEEDS, FIRST_SEED = (0, 1, 2), 100
"""The fit beside run seed s has seed FIRST_SEED + s."""
FORMS = ("anchored", "relative")
IMAGES, COUNT = "world:photo/rest", 48
OFTEN = ("evaluate.every=5", "evaluate.num_samples=128", "evaluate.num_samples_during=128")
LOSSES = (0.02, 0.05, 0.1)
"""Shares of the base model's content that may be lost."""
FIT_NUMBERS = {
    "style": ("style gap", 3),
    "separated": ("separated", 2),
    "content": ("content gap", 3),
    "bias": ("bias over style", 2),
}


@dataclass(frozen=True)
class Variant:
    """The recipe's phrases, or tokens fitted as `fitting` says."""

    name: str
    title: str
    fitting: SoftPromptConfig | None

    def file(self, seed: int, out: Path, side: str) -> Path:
        """Where the tokens of one side lie."""
        return out / "tokens" / f"{self.name}-seed{seed}.{side}.safetensors"

    def arm(self, form: str, seed: int, out: Path) -> Arm:
        """The recipe in one form of the reward, with phrases or with this seed's tokens."""
        sides = {side: [str(self.file(seed, out, side))] for side in ("positive", "negative")}
        tokens = [f"method.control_phrases={json.dumps(sides)}"] if self.fitting else []
        overrides = (*OFTEN, f"method.form={form}", *tokens)
        return Arm(f"{self.name}_{form}", f"{self.title}, {form}", RECIPE, overrides)


VARIANTS = (
    Variant("words", "words", None),
    Variant("style_tokens", "style tokens", SoftPromptConfig(content=0.0)),
    Variant("tokens", "full tokens", SoftPromptConfig()),
)


def measure(out: Path, quick: bool) -> list[Row]:
    """Fit the tokens of every seed, train with tokens and phrases; quick: one seed, short fit."""
    rows: list[Row] = []
    for seed in SEEDS[:1] if quick else SEEDS:
        for each in (each for each in VARIANTS if each.fitting):
            settings = settings_of(Arm(each.name, each.title, RECIPE), seed)
            make = partial(_fit, each, seed, out, quick, settings)
            rows += piece(out, f"fit-{each.name}-seed{seed}", settings, make)
        arms = sized([each.arm(form, seed, out) for each in VARIANTS for form in FORMS], quick)
        rows += run_arms("soft_prompts", arms, [seed], out)
    return rows


def _fit(each: Variant, seed: int, out: Path, quick: bool, settings: config.RunConfig) -> list[Row]:
    """Write the tokens; two rows: the phrases and the tokens on held-out images."""
    assert each.fitting is not None
    fitting = replace(each.fitting, seed=FIRST_SEED + seed)
    fitting = replace(fitting, num_steps=4) if quick else fitting
    count = 8 if quick else COUNT
    examples = load_examples(IMAGES, "soft_prompts", count=count, seed=fitting.seed)
    reward = load_reward(settings.reward)
    fitted = fit_soft_prompts(reward, examples, settings.method.control_phrases, fitting)
    for side, tokens in (("positive", fitted.positive), ("negative", fitted.negative)):
        write_tokens(each.file(seed, out, side), tokens)
    assert fitted.start is not None
    named = {"study": "soft_prompts", "kind": "fit", "seed": seed, "fit": each.name}
    named |= {"best_step": fitted.best_step, "pictures": fitted.held_out}
    return [
        {**named, "arm": "words", "title": "words", **asdict(fitted.start)},
        {**named, "arm": each.name, "title": each.title, **asdict(fitted.learned)},
    ]


def best_within(run: Rows, loss: float) -> float:
    """The highest photo rate of a run while it had lost at most `loss` of the base's content.

    The run is linear between measurements, and is read where it crosses the loss, too.
    """
    level = (1 - loss) * run.base["content"]
    kept = [row["photo_rate"] for row in run if row["content"] >= level]
    for before, after in pairwise(run):
        if (before["content"] >= level) != (after["content"] >= level):
            share = (level - before["content"]) / (after["content"] - before["content"])
            kept.append(before["photo_rate"] + share * (after["photo_rate"] - before["photo_rate"]))
    return max(kept)


def forms_of(runs: Rows) -> dict[str, list[str]]:
    """{form of the reward: its arms}."""
    forms: dict[str, list[str]] = {}
    for arm in runs.arms:
        forms.setdefault(arm.rpartition("_")[2], []).append(arm)
    return forms


def tables(rows: Rows) -> dict[str, Table]:
    fits, runs = rows.where(kind="fit"), rows.runs
    fit_lines, run_lines = [], []
    for arm, title in fits.arms.items():
        once = {row["seed"]: row for row in fits.where(arm=arm)}.values()
        numbers = []
        for key, (_, digits) in FIT_NUMBERS.items():
            numbers.append(with_interval(mean_interval([row[key] for row in once]), digits))
        fit_lines.append([title, *numbers])
    ends = (
        Column("photo_rate", "photo rate at the end", 2),
        Column("content", "content at the end", 2),
        MEASURED[2],
    )
    titles = runs.arms
    for arm in (arm for arms in forms_of(runs).values() for arm in arms):
        best = []
        for loss in LOSSES:
            rates = [best_within(run, loss) for run in runs.runs_of(arm)]
            best.append(with_interval(mean_of("photo_rate", rates)))
        run_lines.append([titles[arm], *best, *means(ends, runs.last(arm))])
    within = [f"photo rate within {100 * loss:g} % content loss" for loss in LOSSES]
    fit_columns = ["pos − neg of", *(title for title, _ in FIT_NUMBERS.values())]
    return {
        "fit": Table(fit_columns, fit_lines),
        "training": Table(["reward", *within, *(column.title for column in ends)], run_lines),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    runs, files = rows.runs, []
    titles = runs.arms
    for form, arms in forms_of(runs).items():
        panels = panels_over_updates(runs, arms, banded=False)
        short = {arm: titles[arm].partition(",")[0] for arm in arms}
        file = folder / f"soft_prompts_{form}.png"
        title, note = f"Phrases and learned tokens, {form} reward", "Means over seeds."
        files.append(curves(file, title, panels, note, titles=short))
    return files
