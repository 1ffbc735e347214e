"""Which numbers a run will measure, and which way each is better: known from the recipe alone, before anything loads."""

from __future__ import annotations

from typing import Literal

from .. import config
from ..rewards import reward_class
from ..world.scenes import STYLES
from . import drift, held_out, off_topic
from .scoring import OF_ONE

Better = Literal[1, 0, -1]
"""1 more is better, -1 less is better, 0 neither: such a number only tells that something changed."""


def measured_numbers(run: config.Run) -> dict[str, Better]:
    """Every number that stands in a measurement of the run, by name, in the order of the records.

    A reward that is a program of the user's is taken to read prompts; where it does not, two of these names will be missing.
    """
    scores, settings = _scores(run), run.evaluate
    found: dict[str, Better] = {**_judged(run), **dict.fromkeys(drift.STATISTICS, 0), **scores, "color_drift": -1}
    if settings.off_topic is not None:
        found |= {**dict.fromkeys((f"{off_topic.PREFIX}{name}" for name in scores), 0), f"{off_topic.PREFIX}color_drift": -1}
    if settings.off_topic == off_topic.WORLD and settings.judge == "world":
        found |= {off_topic.STYLE_KEPT: 1, off_topic.CONTENT: 1}
    return {**found, "diversity": 1} if settings.diversity_prompts else found


def judge_of(run: config.Run) -> str:
    """The number that says how good the run's weights are: `stop.judge`, else the best that the run measures.

    That is the world's photo rate, the first held-out reward, or the absolute score, which is trained on and so a judge for want of one.
    """
    named = run.stop.judge if run.stop is not None else None
    return named or next(iter((*(["photo_rate"] if run.evaluate.judge == "world" else []), *_held_out_plain(run), score_of(run))))


def score_of(run: config.Run) -> str:
    """The absolute score of what is trained on: under the positive phrases, or of the bare prompt where there are none."""
    return "score_pos" if _reads_prompt(run.reward) and run.method.words.positive else "reward"


def _judged(run: config.Run) -> dict[str, Better]:
    return {"photo_rate": 1, "content": 1, **{f"style_{name}": 0 for name in STYLES}} if run.evaluate.judge == "world" else {}


def _scores(run: config.Run) -> dict[str, Better]:
    """Those of the trained reward and of the held-out ones."""
    words, members = run.method.words, run.reward.members if isinstance(run.reward, config.Mix) else []
    asked = [name for name, phrases in (("score_pos", words.positive), ("score_neg", words.negative)) if phrases and _reads_prompt(run.reward)]
    trained: dict[str, Better] = {name: 0 if name == "score_neg" else 1 for name in ("reward", *asked, *(f"{OF_ONE}{member.label}" for member in members))}
    for label, reward in run.evaluate.rewards.items():
        sides = ((held_out.POS, words.positive), (held_out.NEG, words.negative)) if reward_class(reward.name).image_embeddings else ()
        trained |= {f"{held_out.PREFIX}{label}": 1, **{f"{held_out.PREFIX}{label}{side}": 0 for side, phrases in sides if phrases}}
    return trained


def _held_out_plain(run: config.Run) -> list[str]:
    return [f"{held_out.PREFIX}{label}" for label in run.evaluate.rewards]


def _reads_prompt(reward: config.Reward) -> bool:
    members = [member.reward for member in reward.members] if isinstance(reward, config.Mix) else [reward]
    return any(reward_class(member.name).reads_prompt for member in members)
