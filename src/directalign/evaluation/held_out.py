"""Held-out rewards: measured beside the one that is trained on, and never trained on.

A model that games its reward does not please another one; a score that rises with the trained one and falls with these is hacking.
`held_out_<label>` is the score under the bare prompt. A CLIP or SigLIP is also asked under the run's control phrases, which costs it no
further look at the image; learned control tokens belong to the reward that they were fitted to, and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from .. import config
from ..interfaces import Reward
from ..metrics import HELD_OUT, NEG, POS
from ..rewards import load_reward
from ..rewards.soft_prompts import is_tokens_file
from ..types import DirectAlignError, Images, PerSample
from .scoring import BARE, Asked, scored

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def key_of(label: str) -> str:
    """Where a held-out reward stands in the recipe."""
    return f"evaluate.rewards.{label}"


def check_labels(labels: Sequence[str]) -> None:
    """Refuse labels that make no name of a number, or the name of another number."""
    for label in labels:
        if not LABEL.fullmatch(label) or label.endswith((POS, NEG)):
            raise DirectAlignError(f"{key_of(label)}: a label has letters, digits, _ and - alone and does not end in {POS} or {NEG}; call it e.g. second")


def load_held_out(settings: config.Evaluate, device: torch.device | str) -> dict[str, Reward]:
    """The held-out rewards of a recipe by label, in its order."""
    check_labels(list(settings.rewards))
    return {label: load_reward(each, device, key_of(label)) for label, each in settings.rewards.items()}


def held_out_scores(rewards: Mapping[str, Reward], images: Images, prompts: Sequence[str], run: config.Run, device: torch.device) -> dict[str, PerSample]:
    """`held_out_<label>` of every image, and `held_out_<label>_pos`, `held_out_<label>_neg` where they cost little; each (b,)."""
    found: dict[str, PerSample] = {}
    for label, reward in rewards.items():
        found |= scored(reward, _asked(f"{HELD_OUT}{label}", reward, run.method.words), images, prompts, run.evaluate.batch_size, device)
    return found


def _asked(name: str, reward: Reward, words: config.ControlPhrases) -> Asked:
    if not getattr(reward, "image_embeddings", False):
        return {name: BARE}
    sides = {POS: words.positive, NEG: words.negative}
    return {name: BARE, **{f"{name}{side}": [phrase for phrase in phrases if not is_tokens_file(phrase)] for side, phrases in sides.items()}}
