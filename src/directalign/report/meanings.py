"""What a number is: its name in words, its role (what judges, what is trained on, what is held out ...), which way is better.

The records may say so themselves (`names` in a comparison's summary.json) and are believed; for a run, and where they are silent, it
is read off the name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .files import mapping
from .writing import cut, percent_of, written

ROLES = {
    "judge": ("Judges", "judge", "Independent of every reward, never trained on."),
    "adherence": ("Asked and there", "adherence", "Whether what the prompt asks for is in the image, by a judge that no model was trained on."),
    "held_out": ("Held out", "held out", "Rewards that are measured and never trained on: a fall while the trained one rises is hacking."),
    "sgp": ("Preference for realism", "SGP", "How much higher a reward scores an image under the wanted phrases than under the unwanted."),
    "trained": ("Trained on", "trained on", "What the optimiser sees. It rises whether the images get better or not."),
    "drift": ("Drift", "drift", "Plain statistics of the pixels. None of them should move further than the change that is wanted."),
    "leakage": ("Off topic", "leakage", "Prompts that the training has nothing to do with: what moves here has leaked."),
}
"""role: (title of a group, word on a chip, what it means), in the order in which groups are shown."""

HELD_OUT, OFF_TOPIC, OF_ONE, STYLE = "held_out_", "off_topic_", "reward_", "style_"
SHARE = "Share "
"""What the scale of a rate begins with."""
RATES = ("photo_rate", "content", "style_kept", "dark_share")
KNOWN: dict[str, tuple[str, str, int, str]] = {
    "photo_rate": ("Photo rate", "judge", 1, "Share of images that the style judge takes for a photo."),
    "content": ("Content", "judge", 1, "Share with colour, shape and background all as asked. A fall here is the price of the style."),
    "color_drift": ("Colour drift", "drift", -1, "Distance of the mean colour cast from the reference images. A tint that pleases the reward shows here."),
    "brightness": ("Brightness", "drift", 0, "Mean luminance, 0 to 1."),
    "saturation": ("Saturation", "drift", 0, "Mean of the largest minus the smallest channel, 0 to 1."),
    "sharpness": ("Sharpness", "drift", 0, "Mean squared difference of neighbouring luminances. A reward that likes smooth images lowers it."),
    "high_frequency": ("Finest detail", "drift", 0, "Mean square of luminance minus its 3 × 3 mean."),
    "dark_share": ("Dark pixels", "drift", 0, "Share of pixels with a luminance below 0.1."),
    "entropy": ("Entropy", "drift", 0, "Of the luminance's histogram, in bits."),
    "edge_density": ("Edge density", "drift", 0, "Share of pixels on an edge."),
    "diversity": ("Diversity", "drift", 1, "How much the images of one prompt differ from seed to seed (RMSE of pixels). A fall is a model that collapses."),
    "reward": ("Reward of whole images", "trained", 1, "Mean score of sampled images under the bare prompt: rising while content falls is hacking."),
    "score_pos": ("Score, wanted phrases", "trained", 0, "Mean score of sampled images under the wanted phrases."),
    "score_neg": ("Score, unwanted phrases", "trained", 0, "Mean score of sampled images under the unwanted phrases."),
    "off_topic_reward": ("Reward off topic", "leakage", 0, "Mean score of prompts that the training has nothing to do with. A rise is what leaked onto them."),
    "off_topic_score_pos": (
        "Wanted score off topic",
        "leakage",
        0,
        "The same under the wanted phrases: how far what was trained is preferred where nobody asked.",
    ),
    "off_topic_score_neg": ("Unwanted score off topic", "leakage", 0, "The same under the unwanted phrases."),
    "off_topic_color_drift": ("Colour drift off topic", "leakage", -1, "Distance of the mean colour cast from the base model's own images; 0 is unchanged."),
    "off_topic_style_kept": ("Style kept off topic", "leakage", 1, "Share in the style that the prompt itself asks for. A fall suppresses a legitimate style."),
    "off_topic_content": ("Content off topic", "leakage", 1, "Share with colour, shape and background all as asked."),
}


@dataclass(frozen=True)
class Meaning:
    """A number's key in the records, and what to say of it; `better` is +1 where more is better, −1 where less is, 0 for neither."""

    key: str
    label: str
    role: str
    better: int
    scale: str
    percent: bool

    @property
    def chip(self) -> str:
        return ROLES[self.role][1]

    def of_one(self, value: float) -> str:
        """A single image's number in writing; of a rate the yes or no that it is."""
        if self.percent and value in (0.0, 1.0):
            return "yes" if value else "no"
        return percent_of(value) if self.percent else written(value)

    @property
    def direction(self) -> str:
        return {1: "more is better", -1: "less is better"}.get(self.better, "")


def meaning(key: str, told: Mapping[str, Any] | None = None) -> Meaning:
    """Of a number's name, with what the records tell of it laid over what the name says."""
    label, role, better, scale = KNOWN.get(key) or _guessed(key)
    said = mapping(told)
    given, scale = said.get("role"), cut(said.get("scale") or scale)
    return Meaning(
        key=key,
        label=cut(said.get("label") or label, 60),
        role=given if isinstance(given, str) and given in ROLES else role,
        better=said["better"] if said.get("better") in (-1, 0, 1) else better,
        scale=scale,
        percent=scale.startswith(SHARE) or key.removeprefix(OFF_TOPIC) in RATES or key.startswith(STYLE) or key.endswith(("_rate", "_share")),
    )


def by_role(meanings: Iterable[Meaning]) -> list[tuple[str, list[Meaning]]]:
    """(role, its numbers) in the order of `ROLES`; roles without a number are left out."""
    found = list(meanings)
    grouped = [(role, [each for each in found if each.role == role]) for role in ROLES]
    return [(role, each) for role, each in grouped if each]


def judging(meanings: Iterable[Meaning]) -> list[Meaning]:
    """Numbers that may say which of two images is better, most independent first: judges, adherence, held-out rewards, then the rest."""
    asked = [each for each in meanings if each.better > 0 and not each.key.endswith(("_pos", "_neg"))]
    order = [role for role in ROLES if role not in ("drift", "leakage")]
    return sorted((each for each in asked if each.role in order), key=lambda each: order.index(each.role))


def drifting(meanings: Iterable[Meaning]) -> list[Meaning]:
    """Numbers that say how far a model has moved where less is better."""
    return [each for each in meanings if each.better < 0 and each.role == "drift"]


def _guessed(key: str) -> tuple[str, str, int, str]:
    words = key.replace("_", " ").strip()
    if key.startswith(HELD_OUT):
        label = f"Held out: {key.removeprefix(HELD_OUT)}"
        return label, "held_out", 0 if key.endswith(("_pos", "_neg")) else 1, "Mean score of a reward that is never trained on."
    if key.startswith(OFF_TOPIC + HELD_OUT):
        return f"Held out: {key.removeprefix(OFF_TOPIC + HELD_OUT)}, off topic", "leakage", 0, "Mean score of a held-out reward on prompts that are off topic."
    if key.startswith(OFF_TOPIC):
        return f"{words.removeprefix('off topic ').capitalize()} off topic", "leakage", 0, "On prompts that the training has nothing to do with."
    if key.startswith(STYLE):
        return f"Style {words.removeprefix('style ')}", "judge", 0, "Share of images that the style judge takes for this style."
    if key.startswith(OF_ONE):
        return f"{key.removeprefix(OF_ONE)} of whole images", "trained", 1, "Mean score of one member of the mixture under the bare prompt, in its own units."
    if "sgp" in key:
        return f"{words.upper() if words == 'sgp' else words}", "sgp", 1, "Score under the wanted phrases minus that under the unwanted."
    return words[:1].upper() + words[1:], "drift", 0, "As recorded."
