"""The model card's account of what was measured before and after, from summary.json, and of what was not."""

from __future__ import annotations

from typing import Any

from .. import config
from ..report.collect import number

MEANINGS = {
    "photo_rate": "share of images that the style judge calls a photo",
    "content": "share of images that show what the prompt names",
    "color_drift": "distance of the mean colour cast from the reference, lower is better",
    "reward": "mean score of the reward that was trained on, under the plain prompt",
    "score_pos": "the same under the desired control phrases",
    "score_neg": "the same under the undesired ones",
    "diversity": "how much images of one prompt differ",
}
SIDES = {"_pos": ", under the desired control phrases", "_neg": ", under the undesired ones"}
OFF_TOPIC = {
    "color_drift": "distance of the mean colour cast from the base model's own images, lower is better",
    "style_kept": "share of images in the style that the prompt itself asks for",
    "content": MEANINGS["content"],
    "reward": MEANINGS["reward"],
    "score_pos": "mean score of the trained reward under the desired control phrases",
    "score_neg": "mean score of the trained reward under the undesired control phrases",
}
NOT_NUMBERS = ("step", "event", "seconds")
UNMEASURED = """Not measured: what people prefer; prompts, sizes, samplers, step counts and guidance other than the recipe's; text in images, bias and
safety. A reward that rises is what training asked for, not evidence of better images. All limits of the base model remain."""


def measured(run: config.Run, summary: dict[str, Any]) -> str:
    """A table of the first and the last measurement, how they were made, and what they leave open."""
    before, after = summary.get("before"), summary.get("after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return f"Nothing: the run's records hold no measurement before and after.\n\n{UNMEASURED}"
    rows = [_row(name, before, after) for name in after if name not in NOT_NUMBERS and number(after[name]) is not None]
    table = "\n".join(["| | before | after | meaning |", "|---|---|---|---|", *rows])
    return f"{table}\n\n{_how(run)}\n\n{UNMEASURED}"


def _row(name: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    return f"| {name} | {_cell(before.get(name))} | {_cell(after[name])} | {meaning(name)} |"


def meaning(name: str) -> str:
    """What a number of the measurements says, in words; members of mixtures, held-out rewards and off-topic prompts bring names of their own."""
    if name.startswith("off_topic_"):
        within = name.removeprefix("off_topic_")
        return f"on prompts that training has nothing to do with: {OFF_TOPIC.get(within) or meaning(within)}"
    if name.startswith("held_out_"):
        side = next((each for each in SIDES if name.endswith(each)), "")
        label = name.removeprefix("held_out_").removesuffix(side)
        return f"mean score of the held-out reward {label}{SIDES.get(side, ', under the plain prompt')}"
    if name.startswith("reward_"):
        return f"mean score of {name.removeprefix('reward_')}, a member of the reward, under the plain prompt"
    if name.startswith("style_"):
        return f"share of the style judge's answers that say {name.removeprefix('style_')}"
    return MEANINGS.get(name, "statistic of the pixels")


def _cell(value: Any) -> str:
    found = number(value)
    if found is None:
        return "-"
    if isinstance(value, dict) and {"low", "high", "n"} <= value.keys():
        return f"{found:.3f} ({value['low']:.3f} to {value['high']:.3f}, n = {value['n']})"
    return f"{found:.4g}"


def _how(run: config.Run) -> str:
    judges = {"world": "the embedded style and content judges, which training never saw", "none": "no judge: the reward and drift statistics alone"}
    return f"On {run.evaluate.num_pairs} fixed prompt-seed pairs, before and after alike, with {judges[run.evaluate.judge]}. Brackets are 95 % intervals."
