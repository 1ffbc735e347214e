"""What the study `anchor` trains: the anchored reward over its own knobs, over models and methods, and its rivals without an anchor."""

from __future__ import annotations

from ..config.load import load_run
from .running.records import Arm
from .running.sizes import QUICK, sized
from .wordings import OTHERS, PHOTO, Wording
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


MAIN_SEEDS, SEEDS = (0, 1, 2, 3, 4), (0, 1)
ANCHORED = "anchored"
RIVALS = ("official", "half_cost", "relative")
WORDS = f"method.words={json.dumps({'positive': PHOTO, 'negative': OTHERS, 'order': 'average'})}"
TOLERANCE = "method.anchor={tolerance: 0.02, reference_updates: 5}"
GAPS = (
    Wording("narrow_gap", "anchored, narrow word gap", "photo", ("Photo",), ("Render",)),
    Wording("recipe_gap", "anchored, the recipe's words", "photo", PHOTO, OTHERS),
    Wording("wide_gap", "anchored, wide word gap", "photo", (". ".join(PHOTO),), ("CG render. Glossy plastic",)),
)
"""One reward is embedded, so the gap between desired and undesired text is changed by the words: near and far apart in cosine."""


@dataclass(frozen=True)
class Case:
    """An arm, how many times its recipe's length it runs, and from which seeds."""

    arm: Arm
    group: str
    reach: int = 2
    seeds: tuple[int, ...] = SEEDS


def _anchored(name: str, title: str, *overrides: str, recipe: str = "world_srpo") -> Arm:
    return Arm(name, title, recipe, overrides)


def _in_method(recipe: str, title: str) -> list[Case]:
    """Another method under the relative and under the anchored reward."""
    return [
        Case(Arm(f"{recipe}_relative".removeprefix("world_"), f"{title}, relative", recipe, (WORDS, "method.form=relative")), "methods"),
        Case(Arm(f"{recipe}_anchored".removeprefix("world_"), f"{title}, anchored", recipe, (WORDS, "method.form=anchored", TOLERANCE)), "methods"),
    ]


CASES = (
    Case(_anchored(ANCHORED, "anchored, as in the recipe"), "main", 10, MAIN_SEEDS),
    Case(Arm("official", "official, two branches", "world_official"), "main", 2, MAIN_SEEDS),
    Case(Arm("half_cost", "half cost, one branch", "world_half_cost"), "main", 2, MAIN_SEEDS),
    Case(Arm("relative", "relative, k = 0, one branch", "world_srpo", ("method.form=relative",)), "main", 2, MAIN_SEEDS),
    Case(_anchored("tolerance_0.05", "anchored, tolerance 0.05", "method.anchor.tolerance=0.05"), "tolerance"),
    Case(_anchored("tolerance_0.1", "anchored, tolerance 0.1", "method.anchor.tolerance=0.1"), "tolerance"),
    Case(_anchored("rate_3e-4", "anchored, learning rate 3e-4", "train.learning_rate=3e-4"), "learning rate"),
    *(Case(gap.arm, "words") for gap in GAPS if gap.name != "recipe_gap"),
    Case(_anchored("lora", "anchored, LoRA", recipe="world_srpo_lora"), "models"),
    Case(_anchored("sd", "anchored, SD (epsilon)", recipe="world_sd"), "models"),
    Case(_anchored("sd_v", "anchored, SD (v)", recipe="world_sd_v"), "models"),
    *_in_method("world_refl", "ReFL"),
    *_in_method("world_draft_lv", "DRaFT-LV"),
)
QUICK_NAMES = (ANCHORED, "relative")


def cases(quick: bool) -> list[Case]:
    """All cases, or two of them at one seed."""
    return [Case(case.arm, case.group, 1, (0,)) for case in CASES if case.arm.name in QUICK_NAMES] if quick else list(CASES)


def recommended(arm: Arm, quick: bool, recipes: Path) -> int:
    """The updates that the arm's recipe takes: the unit of length."""
    return load_run(recipes / f"{arm.recipe}.yaml", QUICK if quick else []).train.num_steps


def lengthened(case: Case, quick: bool, recipes: Path) -> Arm:
    """The arm at its full reach: measured at every length, or at every half length up to two."""
    if quick:
        return sized([case.arm], quick)[0]
    length = recommended(case.arm, quick, recipes)
    every = length if case.reach > 2 else length // 2
    longer = (f"train.num_steps={case.reach * length}", f"evaluate.every={every}")
    return sized([Arm(case.arm.name, case.arm.title, case.arm.recipe, (*case.arm.overrides, *longer))], quick)[0]


def rivals_of(names: Sequence[str]) -> list[str]:
    """The rivals of the anchored reward that are there."""
    return [name for name in RIVALS if name in names]
