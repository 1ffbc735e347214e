"""Which metrics a run will measure: known from the recipe alone, before anything loads."""

from __future__ import annotations

from .. import config
from ..metrics import DIVERSITY, HELD_OUT, MEMBER, NEG, OFF_TOPIC, POS, Metric, metric
from ..rewards import reward_class
from ..toyworld.scenes import STYLES
from . import control_prompts, drift


def measured_metrics(run: config.Run) -> dict[str, Metric]:
    """Every metric of a measurement of the run by name, in the order of the records.

    A reward that is a user's program is taken to read prompts; where it does not, two of these will be missing.
    """
    scores, settings = _scores(run), run.evaluate
    names = [*(["photo_rate", "content", *(f"style_{name}" for name in STYLES)] if settings.judge == "world" else [])]
    names += [*drift.STATISTICS, *scores, "color_drift"]
    if settings.off_topic is not None:
        names += [f"{OFF_TOPIC}{name}" for name in (*scores, "color_drift")]
    if settings.off_topic == control_prompts.WORLD and settings.judge == "world":
        names += [control_prompts.STYLE_KEPT, control_prompts.CONTENT]
    return {name: metric(name) for name in [*names, *([DIVERSITY] if settings.diversity_prompts else [])]}


def judge_of(run: config.Run) -> str:
    """The number that says how good the run's weights are: `stop.judge`, else the best that the run measures.

    That is the world's photo rate, the first held-out reward, or the absolute score, which is trained on and so a judge for want of one.
    """
    named = run.stop.judge if run.stop is not None else None
    return named or next(iter((*(["photo_rate"] if run.evaluate.judge == "world" else []), *_held_out_plain(run), score_of(run))))


def score_of(run: config.Run) -> str:
    """The absolute score of what is trained on: under the positive phrases, or of the bare prompt where there are none."""
    return "score_pos" if _reads_prompt(run.reward) and run.method.words.positive else "reward"


def _scores(run: config.Run) -> list[str]:
    """Those of the trained reward and of the held-out ones."""
    words, members = run.method.words, run.reward.members if isinstance(run.reward, config.Mix) else []
    sides = [side for side, phrases in ((POS, words.positive), (NEG, words.negative)) if phrases]
    names = ["reward", *(f"score{side}" for side in sides if _reads_prompt(run.reward)), *(f"{MEMBER}{member.label}" for member in members)]
    for label, reward in run.evaluate.rewards.items():
        names += [f"{HELD_OUT}{label}{side}" for side in ("", *(sides if reward_class(reward.name).image_embeddings else ()))]
    return names


def _held_out_plain(run: config.Run) -> list[str]:
    return [f"{HELD_OUT}{label}" for label in run.evaluate.rewards]


def _reads_prompt(reward: config.Reward) -> bool:
    members = [member.reward for member in reward.members] if isinstance(reward, config.Mix) else [reward]
    return any(reward_class(member.name).reads_prompt for member in members)
