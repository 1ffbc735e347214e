"""How large a study's runs are: the full size measures 64 pairs and keeps no checkpoints on the way, the quick one shows that the wiring holds."""

from __future__ import annotations

from .records import Arm
from collections.abc import Sequence
from dataclasses import replace


PAIRS, QUICK_PAIRS = 64, 16
ALWAYS = ("train.checkpoint_every=0", "train.sample_every=0", "train.sample_prompts=[a red star on a navy background]")
FULL = (*ALWAYS, f"evaluate.num_pairs={PAIRS}", f"evaluate.pairs_during={PAIRS}")
QUICK = (
    *ALWAYS,
    f"evaluate.num_pairs={QUICK_PAIRS}",
    f"evaluate.pairs_during={QUICK_PAIRS}",
    "evaluate.every=0",
    "train.num_steps=2",
    "data.batch_size=2",
    "rollout.num_sampling_steps=2",
)
"""Two updates on two prompts."""


def sized(arms: Sequence[Arm], quick: bool) -> list[Arm]:
    """The arms in the full size, or in the quick one, whose settings overrule the arm's own."""
    return [replace(arm, overrides=(*arm.overrides, *QUICK) if quick else (*FULL, *arm.overrides)) for arm in arms]
