"""Drift control: runs set to ten times the recommended length, with and without rules that end them; does what is kept equal the best there was?

Each form of the reward is trained three times from each seed: free, under a budget with a judge, and under the rule that needs no judge.
"""

from __future__ import annotations

from ..config.load import load_run
from .running.experiment import folder_of, run_arms
from .running.records import Arm, Row
from .running.sizes import sized
from .stopping_story import draw, tell
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "stopping"
TITLE = "A run that stops itself before it ruins the model"
QUESTION = (
    "Users see the quality collapse after some tens of updates. Every form of the reward is trained for ten times the recommended length: freely; with a "
    "budget of two points of content and patience with the judge; and with no judge at all, by the absolute score under the positive phrases, which rises, "
    "peaks and falls when a relative reward erases the picture. Does the run end itself, and how far is what it keeps from the best of the free run?"
)
SEEDS = (0, 1, 2)
TIMES = 10
"""How much longer than recommended."""
BUDGET = 0.02
"""Of content, in shares of images. Three points may be lost; the budget is smaller, since a measurement of 128 pairs is noisy."""
PAIRS, PAIRS_DURING = 256, 128
RULES = {
    "free": ("no control", None),
    "judged": ("budget and judge", {"drift": {"content": BUDGET}, "judge": "photo_rate", "judge_patience": 6}),
    "unjudged": ("absolute score alone", {"score_patience": 3, "judge": "score_pos"}),
}


@dataclass(frozen=True)
class Form:
    """A form of the reward, by its recipe; measured every `every` updates. The official ramps ruin the picture fast and so take small steps here."""

    name: str
    title: str
    recipe: str
    every: int
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS


FORMS = (
    Form("anchored", "anchored", "world_srpo", 10),
    Form("official", "official ramps", "world_official", 5, ("train.learning_rate=3e-5",)),
    Form("plain", "plain Direct-Align", "world_direct_align", 5, seeds=SEEDS[:1]),
)


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Train every form under every rule; quick: one form, one seed, two updates."""
    return [row for arm in arms(recipes, quick) for row in _trained(arm, SEEDS[:1] if quick else _seeds_of(arm), out, recipes)]


def _trained(arm: Arm, seeds: Sequence[int], out: Path, recipes: Path) -> list[Row]:
    return run_arms(NAME, [arm], seeds, out, recipes) + [_ending(arm, seed, folder_of(arm, seed, out)) for seed in seeds]


def _seeds_of(arm: Arm) -> tuple[int, ...]:
    return next(form.seeds for form in FORMS if arm.name.startswith(form.name))


def arms(recipes: Path, quick: bool = False) -> list[Arm]:
    """Form by form, each free and under both rules."""
    if quick:
        small = sized([_arm(FORMS[0], rule, ()) for rule in RULES], quick=True)
        return [replace(arm, overrides=(*arm.overrides, "evaluate.every=1")) for arm in small]
    return sized([_arm(form, rule, _length(form, recipes)) for form in FORMS for rule in RULES], quick=False)


def _length(form: Form, recipes: Path) -> tuple[str, ...]:
    num_steps = TIMES * load_run(recipes / f"{form.recipe}.yaml").train.num_steps
    return (
        f"train.num_steps={num_steps}",
        f"evaluate.every={form.every}",
        f"evaluate.num_pairs={PAIRS}",
        f"evaluate.pairs_during={PAIRS_DURING}",
        f"train.sample_every={num_steps // 10}",
        "train.sample_prompts=[a red star on a navy background, a blue ring on a white background, a pink ring on a gray background]",
    )


def _arm(form: Form, rule: str, length: tuple[str, ...]) -> Arm:
    title, settings = RULES[rule]
    control = (f"stop={json.dumps(settings)}",) if settings is not None else ()
    return Arm(f"{form.name}_{rule}", f"{form.title}, {title}", form.recipe, (*form.overrides, *length, *control))


def _ending(arm: Arm, seed: int, folder: Path) -> Row:
    """How a run ended: when and why it stopped, which weights it left, and what all pairs say of them."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    form, rule = arm.name.split("_")
    stopped, left = summary.get("stopped") or {}, summary["after"]
    numbers = {name: left[name]["value"] for name in ("photo_rate", "content")} | {"color_drift": left["color_drift"]}
    facts = {name: summary[name] for name in ("commit", "machine", "versions")}
    named = {"study": NAME, "kind": "ending", "arm": arm.name, "title": arm.title, "form": form, "rule": rule, "seed": seed}
    told = {"updates": summary["num_steps"], "reason": stopped.get("reason"), "says": stopped.get("says"), "kept": (summary.get("kept") or left)["step"]}
    return {**named, **told, **numbers, "align_seconds": summary["align_seconds"], **facts}
