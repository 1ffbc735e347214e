"""The registry of metrics: name, label, role, direction, unit and description of each.

A new metric needs one entry here and its function in `evaluation.image_metrics` or `.scores`.
Tables, pages, the model card and early stopping read the registry. Metrics whose names contain a
reward's label or a style are described by their prefix, see `metric`. Those of users' files
(`evaluate.metrics`) enter `USER_METRICS` when they are loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# fmt: off
ROLES = {
    "judge": ("Judges", "judge", "Independent of every reward, never trained on."),
    "adherence": ("Prompt adherence", "adherence", "Whether the image shows what the prompt asks"
                  " for, by a judge that no model was trained on."),
    "held_out": ("Held out", "held out", "Rewards that are measured and never trained on: a fall"
                 " while the trained one rises is hacking."),
    "sgp": ("Preference for realism", "SGP", "How much higher a reward scores an image under the"
            " wanted phrases than under the unwanted."),
    "trained": ("Trained on", "trained on", "What the optimiser sees. It rises whether the images"
                " get better or not."),
    "drift": ("Drift", "drift", "Plain statistics of the pixels. None of them should move further"
              " than the change that is wanted."),
    "leakage": ("Off topic", "leakage", "Prompts that the training has nothing to do with: what"
                " moves here has leaked."),
}
# fmt: on
"""role: (title of a group, short name, description), in the order in which groups appear."""

HELD_OUT, OFF_TOPIC, MEMBER, STYLE = "held_out_", "off_topic_", "reward_", "style_"
SCORE, SGP = "score_", "sgp_"
POS, NEG = "_pos", "_neg"
BASE_RMSE, BASE_CAST, BASE_FEATURES = "base_rmse", "base_color_shift", "base_distance_"
DIVERSITY, DIVERSITY_FEATURES = "diversity", "diversity_"
SHARE, SCORE_UNIT = "share", "score"


@dataclass(frozen=True)
class Metric:
    """One metric. `higher_is_better` None: descriptive, excluded from wins.

    `unit` is "share" (0 to 1, printed in percent), "score" (a reward's own units), or in words.
    """

    name: str
    label: str
    role: str
    higher_is_better: bool | None
    description: str
    unit: str = ""

    @property
    def better(self) -> int:
        """1 where more is better, -1 where less is, 0 for neither."""
        return 0 if self.higher_is_better is None else 1 if self.higher_is_better else -1

    @property
    def direction(self) -> str:
        """In words; empty for neither."""
        return {1: "more is better", -1: "less is better"}.get(self.better, "")

    @property
    def percent(self) -> bool:
        """Whether it is a share, printed in percent."""
        return self.unit == SHARE

    @property
    def is_rate(self) -> bool:
        """Whether every image has 0 or 1 and 1 is better; a run's records give it an interval."""
        return self.unit == SHARE and self.higher_is_better is True

    @property
    def role_name(self) -> str:
        return ROLES[self.role][1]

    def as_record(self) -> dict[str, Any]:
        """Its form under `names` in a comparison's summary.json."""
        about = {"role": self.role, "better": self.better, "unit": self.unit}
        return {"label": self.label, **about, "scale": self.description}


def _metrics(role: str, *rows: tuple[str, str, bool | None, str, str]) -> dict[str, Metric]:
    """Metrics of one role; a row is (name, label, higher is better, unit, description)."""
    return {
        name: Metric(name, label, role, higher_is_better, description, unit)
        for name, label, higher_is_better, unit, description in rows
    }


# fmt: off
JUDGED = _metrics(
    "judge",
    ("photo_rate", "Photo rate", True, SHARE,
     "Share of images that the style judge takes for a photo."),
    ("content", "Content", True, SHARE,
     "Share of images whose colour, shape and background are all as the prompt says. A fall is"
     " the price of the style."),
) | _metrics(
    "adherence",
    ("color", "Colour right", True, SHARE,
     "Share of images whose shape has the colour of the prompt."),
    ("shape", "Shape right", True, SHARE, "Share of images that show the shape of the prompt."),
    ("background", "Background right", True, SHARE,
     "Share of images whose background is the prompt's."),
) | _metrics(
    "judge",
    ("style_cg", "Style CG", None, SHARE,
     "Share of images that the style judge takes for computer graphics."),
    ("style_painting", "Style painting", None, SHARE,
     "Share of images that the style judge takes for a painting."),
    ("style_anime", "Style anime", None, SHARE,
     "Share of images that the style judge takes for anime."),
)
"""Per image, by the judges of the embedded toy world."""

PIXELS = _metrics(
    "drift",
    ("brightness", "Brightness", None, "", "Mean luminance (Rec. 709 on stored values), 0 to 1."),
    ("saturation", "Saturation", None, "",
     "Mean of the largest minus the smallest channel, 0 to 1."),
    ("dark_share", "Dark share", None, SHARE, "Share of pixels with luminance below 0.1."),
    ("entropy", "Entropy", None, "bits",
     "Shannon entropy of the histogram of luminance in 256 levels, 0 to 8 bits."),
    ("edge_density", "Edge density", None, SHARE,
     "Share of pixels that differ by more than 0.1 in luminance from the next one right or below."),
    ("high_frequency", "High-frequency energy", None, "",
     "Mean square of luminance minus its 3 × 3 mean; 0 for a flat image, below 0.2."),
    ("sharpness", "Sharpness", None, "",
     "Mean squared difference of neighbouring luminances, 0 to 2. A reward that prefers smooth"
     " images lowers it."),
    ("color_cast", "Colour cast", None, "",
     "Length of the mean colour minus its own grey; 0 for grey, 0.82 for pure red."),
    ("red_cast", "Red cast", None, "", "Mean red minus the mean of all channels, -2/3 to 2/3."),
    ("green_cast", "Green cast", None, "",
     "Mean green minus the mean of all channels, -2/3 to 2/3."),
    ("blue_cast", "Blue cast", None, "", "Mean blue minus the mean of all channels, -2/3 to 2/3."),
    (BASE_RMSE, "Distance to the base, pixels", None, "",
     "Root mean square difference to the base model's image of the same prompt and seed, 0 to 1."),
    (BASE_CAST, "Colour shift from the base", False, "",
     "Length of the change of the colour cast from the base model's image, 0 to 1.64."),
    (DIVERSITY, "Diversity", True, "",
     "Mean root mean square difference to the other images of the same prompt, 0 to 1; 0 is "
     "collapse."),
)
"""Per image, from the pixels only."""

TRAINING = _metrics(
    "drift",
    ("color_drift", "Colour drift", False, "",
     "Distance of the mean colour cast from the reference images. A tint that the reward "
     "prefers shows here."),
) | _metrics(
    "trained",
    ("reward", "Reward of whole images", True, SCORE_UNIT,
     "Mean score of sampled images under the bare prompt: rising while content falls is hacking."),
    ("score_pos", "Score, wanted phrases", True, SCORE_UNIT,
     "Mean score of sampled images under the wanted phrases."),
    ("score_neg", "Score, unwanted phrases", None, SCORE_UNIT,
     "Mean score of sampled images under the unwanted phrases."),
)
"""During training: the trained reward per image, the colour drift of a set of images."""

CONTROL = _metrics(
    "leakage",
    ("off_topic_style_kept", "Style kept off topic", True, SHARE,
     "Share of off-topic images in the style that their prompt names. A fall suppresses a "
     "legitimate style."),
    ("off_topic_content", "Content off topic", True, SHARE,
     "Share of off-topic images with the prompt's colour, shape and background."),
    ("off_topic_color_drift", "Colour drift off topic", False, "",
     "Distance of the mean colour cast from the base model's own images; 0 is unchanged."),
    (OFF_TOPIC + BASE_RMSE, "Distance to the base off topic", False, "",
     PIXELS[BASE_RMSE].description),
    (OFF_TOPIC + BASE_CAST, "Colour shift off topic", False, "", PIXELS[BASE_CAST].description),
)
"""On control prompts, with a direction; all others are derived, see `metric`."""
# fmt: on

METRICS = {**JUDGED, **PIXELS, **TRAINING, **CONTROL}
USER_METRICS: dict[str, Metric] = {}
"""Of users' files, by name, filled by `evaluation.scores.user_metrics`."""
RESERVED = (OFF_TOPIC, HELD_OUT, MEMBER, STYLE, SCORE, SGP, BASE_FEATURES, DIVERSITY, "adherence")
"""Prefixes of names that the package forms."""


def metric(name: str) -> Metric:
    """The metric of a name: its entry in `METRICS` or `USER_METRICS`, or by its prefix."""
    known = METRICS.get(name) or USER_METRICS.get(name)
    if known is not None:
        return known
    if name.startswith(OFF_TOPIC):
        inner = metric(name.removeprefix(OFF_TOPIC))
        label = f"{inner.label.removesuffix(' of whole images')} off topic"
        text = "On prompts that the training has nothing to do with: a rise here has leaked."
        return Metric(name, label, "leakage", None, f"{inner.description} {text}", inner.unit)
    if name.startswith(HELD_OUT):
        label = name.removeprefix(HELD_OUT)
        text, best = "Mean score of a reward that is never trained on, under the bare prompt.", True
        if label.endswith((POS, NEG)):
            side = "wanted" if label.endswith(POS) else "unwanted"
            text, best = f"The same under the {side} phrases.", None
        return Metric(name, f"Held out: {label}", "held_out", best, text, SCORE_UNIT)
    if name.startswith(STYLE):
        label = f"Style {name.removeprefix(STYLE).replace('_', ' ')}"
        text = "Share of images that the style judge takes for this style."
        return Metric(name, label, "judge", None, text, SHARE)
    if name.startswith(MEMBER):
        label = f"{name.removeprefix(MEMBER)} of whole images"
        text = "Mean score of one member of the mixture under the bare prompt, in its own units."
        return Metric(name, label, "trained", True, text, SCORE_UNIT)
    label = name.replace("_", " ").strip()
    if "sgp" in name:
        label = label.upper() if label == "sgp" else label
        text = "Score under the wanted phrases minus that under the unwanted."
        return Metric(name, label, "sgp", True, text, SCORE_UNIT)
    unit = SHARE if name.endswith(("_rate", "_share")) else ""
    return Metric(name, label[:1].upper() + label[1:], "drift", None, "As recorded.", unit)


# --- per reward, in a comparison ------------------------------------------------------------------


def score_metric(label: str, kind: str, scale: float, trained: bool) -> Metric:
    """The plain score of a reward; `trained`: a model of the comparison was trained on it."""
    text = f"Score of {kind} under the bare prompt, times {scale:g}."
    role = "trained" if trained else "held_out"
    return Metric(SCORE + label, label, role, True, text, SCORE_UNIT)


def sgp_metric(
    label: str, kind: str, scale: float, positive: Sequence[str], negative: Sequence[str]
) -> Metric:
    """The style gap of a reward: under wanted phrases minus under unwanted ones."""
    wanted, unwanted = (" and ".join(f'"{each}"' for each in side) for side in (positive, negative))
    text = (
        f"Raw score of {kind} (times {scale:g}) with {wanted} before the prompt minus with "
        f"{unwanted}; published tables print 100 times this."
    )
    return Metric(SGP + label, f"{label}, style gap", "sgp", True, text, SCORE_UNIT)


def feature_metrics(label: str) -> dict[str, Metric]:
    """Distances between the image features of a reward that has them, by name."""
    base = f"1 - cosine of {label}'s features and those of the base's image, 0 to 2."
    other = f"Mean 1 - cosine of {label}'s features and those of the prompt's other images, 0 to 2."
    return _metrics(
        "drift",
        (BASE_FEATURES + label, f"Distance to the base, {label}", None, "", base),
        (DIVERSITY_FEATURES + label, f"Diversity, {label}", True, "", other),
    )


def off_topic_score_metric(label: str) -> Metric:
    """The plain score of a reward on control prompts."""
    text = "The same score on prompts that training is not about: what rises here has leaked."
    name = OFF_TOPIC + SCORE + label
    return Metric(name, f"{label} off topic", "leakage", None, text, SCORE_UNIT)


# --- selections -----------------------------------------------------------------------------------


def by_role(metrics: Iterable[Metric]) -> list[tuple[str, list[Metric]]]:
    """(role, its metrics) in the order of `ROLES`; roles without a metric are left out."""
    found = list(metrics)
    grouped = [(role, [each for each in found if each.role == role]) for role in ROLES]
    return [(role, each) for role, each in grouped if each]


def judging(metrics: Iterable[Metric]) -> list[Metric]:
    """Metrics by which one of two images is better, the most independent role first."""
    order = [role for role in ROLES if role not in ("drift", "leakage")]
    found = [each for each in metrics if each.higher_is_better and each.role in order]
    found = [each for each in found if not each.name.endswith((POS, NEG))]
    return sorted(found, key=lambda each: order.index(each.role))


def drifting(metrics: Iterable[Metric]) -> list[Metric]:
    """Metrics of how far a model has moved, less of which is better."""
    return [each for each in metrics if each.higher_is_better is False and each.role == "drift"]
