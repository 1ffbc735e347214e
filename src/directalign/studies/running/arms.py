"""The methods that stand side by side, each with its recipe and the learning rate that the study `tuning` chose for it.

Policy gradients go on longer, so that there is a level at which to compare them.
"""

from __future__ import annotations

from ..showing.palette import title_of
from .budget import Budget
from .records import Arm
from collections.abc import Sequence
from dataclasses import replace


RECIPES = {
    "srpo": "world_srpo",
    "srpo_official": "world_official",
    "direct_align": "world_direct_align",
    "refl": "world_refl",
    "draft_k": "world_draft_k",
    "draft_lv": "world_draft_lv",
    "alignprop": "world_alignprop",
    "drtune": "world_drtune",
    "leapalign": "world_leapalign",
    "flowbp": "world_flowbp",
    "flow_grpo": "world_flow_grpo",
    "grpo_relative": "world_grpo_relative",
}
CHOSEN = {
    "srpo": 3e-4,
    "srpo_official": 3e-5,
    "direct_align": 3e-5,
    "refl": 1e-4,
    "draft_k": 3e-5,
    "draft_lv": 1e-4,
    "alignprop": 3e-4,
    "drtune": 3e-5,
    "leapalign": 3e-5,
    "flowbp": 3e-5,
    "flow_grpo": 1e-4,
    "grpo_relative": 1e-4,
}
"""Learning rates, as `tuning.chosen` finds them in the recorded study; a test holds the two equal."""
ARMS = tuple(Arm(name, title_of(name), recipe, (f"train.learning_rate={CHOSEN[name]}",)) for name, recipe in RECIPES.items())
OURS = "srpo"
POLICY_GRADIENTS, LONGER = ("flow_grpo", "grpo_relative"), 3
QUICK_OVERRIDES = ("data.batch_size=2", "train.sample_prompts=[a red star on a navy background]")


def sized(arms: Sequence[Arm], quick: bool) -> list[Arm]:
    """The arms as they are, or with the small batches of a quick run."""
    return [replace(arm, overrides=(*arm.overrides, *QUICK_OVERRIDES)) if quick else arm for arm in arms]


def allowance(arm: Arm, budget: Budget) -> Budget:
    """What an arm may spend of a study's budget: policy gradients `LONGER` times as much."""
    return budget.times(LONGER) if arm.name in POLICY_GRADIENTS else budget


def watched(arm: Arm, budget: Budget) -> Budget:
    """The allowance, with SRPO measured twice as often: every cost is compared with its cost, and it is early where others are late."""
    allowed = allowance(arm, budget)
    return replace(allowed, measurements=2 * allowed.measurements) if arm.name == OURS else allowed
