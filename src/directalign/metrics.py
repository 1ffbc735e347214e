"""The registry of what is measured: name, label, unit, direction and description of every metric.

A new metric of images needs one entry in `METRICS`; tables, pages, the model card and the stop rules
read it from here. Names with a part that a recipe chooses (the label of a reward, a style) are
described by their prefix, see `metric`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = {
    "judge": ("Judges", "judge", "Independent of every reward, never trained on."),
    "adherence": (
        "Asked and there",
        "adherence",
        "Whether what the prompt asks for is in the image, by a judge that no model was trained on.",
    ),
    "held_out": (
        "Held out",
        "held out",
        "Rewards that are measured and never trained on: a fall while the trained one rises is hacking.",
    ),
    "sgp": (
        "Preference for realism",
        "SGP",
        "How much higher a reward scores an image under the wanted phrases than under the unwanted.",
    ),
    "trained": (
        "Trained on",
        "trained on",
        "What the optimiser sees. It rises whether the images get better or not.",
    ),
    "drift": (
        "Drift",
        "drift",
        "Plain statistics of the pixels. None of them should move further than the change that is wanted.",
    ),
    "leakage": (
        "Off topic",
        "leakage",
        "Prompts that the training has nothing to do with: what moves here has leaked.",
    ),
}
"""role: (title of a group, short name, description), in the order in which groups are shown."""

HELD_OUT, OFF_TOPIC, MEMBER, STYLE = "held_out_", "off_topic_", "reward_", "style_"
SCORE, SGP = "score_", "sgp_"
POS, NEG = "_pos", "_neg"
BASE_RMSE, BASE_CAST, BASE_FEATURES = "base_rmse", "base_color_shift", "base_distance_"
DIVERSITY, DIVERSITY_FEATURES = "diversity", "diversity_"
SHARE, SCORE_UNIT = "share", "score"


@dataclass(frozen=True)
class Metric:
    """One number that is measured. `higher_is_better` None: it describes, and nothing wins by it.

    `unit` is "share" (0 to 1, shown in percent), "score" (a reward's own units), or a range in words.
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
        """Whether it is a share, shown in percent."""
        return self.unit == SHARE

    @property
    def role_name(self) -> str:
        return ROLES[self.role][1]

    def as_record(self) -> dict[str, Any]:
        """Its form under `names` in a comparison's summary.json."""
        direction = {"role": self.role, "better": self.better}
        return {"label": self.label, **direction, "scale": self.description}


def _registry(*metrics: Metric) -> dict[str, Metric]:
    return {each.name: each for each in metrics}


JUDGED = _registry(
    Metric(
        "photo_rate",
        "Photo rate",
        "judge",
        True,
        "Share of images that the style judge takes for a photo.",
        SHARE,
    ),
    Metric(
        "content",
        "Content",
        "judge",
        True,
        "Share of images whose colour, shape and background are all as the prompt says. A fall is the price of the style.",
        SHARE,
    ),
    Metric(
        "color",
        "Colour right",
        "adherence",
        True,
        "Share of images whose shape has the colour of the prompt.",
        SHARE,
    ),
    Metric(
        "shape",
        "Shape right",
        "adherence",
        True,
        "Share of images that show the shape of the prompt.",
        SHARE,
    ),
    Metric(
        "background",
        "Background right",
        "adherence",
        True,
        "Share of images whose background is the prompt's.",
        SHARE,
    ),
    Metric(
        "style_cg",
        "Style CG",
        "judge",
        None,
        "Share of images that the style judge takes for computer graphics.",
        SHARE,
    ),
    Metric(
        "style_painting",
        "Style painting",
        "judge",
        None,
        "Share of images that the style judge takes for a painting.",
        SHARE,
    ),
    Metric(
        "style_anime",
        "Style anime",
        "judge",
        None,
        "Share of images that the style judge takes for anime.",
        SHARE,
    ),
)
"""By the judges of the embedded toy world."""

PIXELS = _registry(
    Metric(
        "brightness",
        "Brightness",
        "drift",
        None,
        "Mean luminance (Rec. 709 on stored values), 0 to 1.",
    ),
    Metric(
        "saturation",
        "Saturation",
        "drift",
        None,
        "Mean of the largest minus the smallest channel, 0 to 1.",
    ),
    Metric(
        "dark_share",
        "Dark share",
        "drift",
        None,
        "Share of pixels with luminance below 0.1.",
        SHARE,
    ),
    Metric(
        "entropy",
        "Entropy",
        "drift",
        None,
        "Shannon entropy of the histogram of luminance in 256 levels, 0 to 8 bits.",
        "bits",
    ),
    Metric(
        "edge_density",
        "Edge density",
        "drift",
        None,
        "Share of pixels that differ by more than 0.1 in luminance from the next one right or below.",
        SHARE,
    ),
    Metric(
        "high_frequency",
        "High-frequency energy",
        "drift",
        None,
        "Mean square of luminance minus its 3 × 3 mean; 0 for a flat image, below 0.2.",
    ),
    Metric(
        "sharpness",
        "Sharpness",
        "drift",
        None,
        "Mean squared difference of neighbouring luminances, 0 to 2. A reward that likes smooth images lowers it.",
    ),
    Metric(
        "color_cast",
        "Colour cast",
        "drift",
        None,
        "Length of the mean colour minus its own grey; 0 for grey, 0.82 for pure red.",
    ),
    Metric(
        "red_cast",
        "Red cast",
        "drift",
        None,
        "Mean red minus the mean of all channels, -2/3 to 2/3.",
    ),
    Metric(
        "green_cast",
        "Green cast",
        "drift",
        None,
        "Mean green minus the mean of all channels, -2/3 to 2/3.",
    ),
    Metric(
        "blue_cast",
        "Blue cast",
        "drift",
        None,
        "Mean blue minus the mean of all channels, -2/3 to 2/3.",
    ),
    Metric(
        BASE_RMSE,
        "Distance to the base, pixels",
        "drift",
        None,
        "Root mean square difference to the base model's image of the same prompt and seed, 0 to 1.",
    ),
    Metric(
        BASE_CAST,
        "Colour shift from the base",
        "drift",
        False,
        "Length of the change of the colour cast from the base model's image, 0 to 1.64.",
    ),
    Metric(
        DIVERSITY,
        "Diversity",
        "drift",
        True,
        "Mean root mean square difference to the other images of the same prompt, 0 to 1; 0 is collapse.",
    ),
)
"""Per image, from the pixels alone."""

TRAINING = _registry(
    Metric(
        "color_drift",
        "Colour drift",
        "drift",
        False,
        "Distance of the mean colour cast from the reference images. A tint that pleases the reward shows here.",
    ),
    Metric(
        "reward",
        "Reward of whole images",
        "trained",
        True,
        "Mean score of sampled images under the bare prompt: rising while content falls is hacking.",
        SCORE_UNIT,
    ),
    Metric(
        "score_pos",
        "Score, wanted phrases",
        "trained",
        True,
        "Mean score of sampled images under the wanted phrases.",
        SCORE_UNIT,
    ),
    Metric(
        "score_neg",
        "Score, unwanted phrases",
        "trained",
        None,
        "Mean score of sampled images under the unwanted phrases.",
        SCORE_UNIT,
    ),
)
"""Of a set of images, measured during training."""

CONTROL = _registry(
    Metric(
        "off_topic_style_kept",
        "Style kept off topic",
        "leakage",
        True,
        "Share of off-topic images in the style that their prompt names. A fall suppresses a legitimate style.",
        SHARE,
    ),
    Metric(
        "off_topic_content",
        "Content off topic",
        "leakage",
        True,
        "Share of off-topic images with the prompt's colour, shape and background.",
        SHARE,
    ),
    Metric(
        "off_topic_color_drift",
        "Colour drift off topic",
        "leakage",
        False,
        "Distance of the mean colour cast from the base model's own images; 0 is unchanged.",
    ),
    Metric(
        OFF_TOPIC + BASE_RMSE,
        "Distance to the base off topic",
        "leakage",
        False,
        PIXELS[BASE_RMSE].description,
    ),
    Metric(
        OFF_TOPIC + BASE_CAST,
        "Colour shift off topic",
        "leakage",
        False,
        PIXELS[BASE_CAST].description,
    ),
)
"""On control prompts that have a direction; all others are derived, see `metric`."""

METRICS = {**JUDGED, **PIXELS, **TRAINING, **CONTROL}


def metric(name: str) -> Metric:
    """The metric of a name: its entry in `METRICS`, or by its prefix."""
    if name in METRICS:
        return METRICS[name]
    if name.startswith(OFF_TOPIC):
        inner = metric(name.removeprefix(OFF_TOPIC))
        text = f"{inner.description} On prompts that the training has nothing to do with: a rise here has leaked."
        return Metric(
            name,
            f"{inner.label.removesuffix(' of whole images')} off topic",
            "leakage",
            None,
            text,
            inner.unit,
        )
    if name.startswith(HELD_OUT):
        label = name.removeprefix(HELD_OUT)
        text, best = "Mean score of a reward that is never trained on, under the bare prompt.", True
        if label.endswith((POS, NEG)):
            text, best = (
                f"The same under the {'wanted' if label.endswith(POS) else 'unwanted'} phrases.",
                None,
            )
        return Metric(name, f"Held out: {label}", "held_out", best, text, SCORE_UNIT)
    if name.startswith(STYLE):
        style = name.removeprefix(STYLE).replace("_", " ")
        return Metric(
            name,
            f"Style {style}",
            "judge",
            None,
            "Share of images that the style judge takes for this style.",
            SHARE,
        )
    if name.startswith(MEMBER):
        text = "Mean score of one member of the mixture under the bare prompt, in its own units."
        return Metric(
            name, f"{name.removeprefix(MEMBER)} of whole images", "trained", True, text, SCORE_UNIT
        )
    words = name.replace("_", " ").strip()
    if "sgp" in name:
        text = "Score under the wanted phrases minus that under the unwanted."
        return Metric(
            name, words.upper() if words == "sgp" else words, "sgp", True, text, SCORE_UNIT
        )
    unit = SHARE if name.endswith(("_rate", "_share")) else ""
    return Metric(name, words[:1].upper() + words[1:], "drift", None, "As recorded.", unit)


# --- per reward, in a comparison ------------------------------------------------------------------


def score_metric(label: str, kind: str, scale: float, trained: bool) -> Metric:
    """The plain score of a reward; `trained`: a model of the comparison was trained on it."""
    text = f"Score of {kind} under the bare prompt, times {scale:g}."
    return Metric(
        SCORE + label, label, "trained" if trained else "held_out", True, text, SCORE_UNIT
    )


def sgp_metric(
    label: str, kind: str, scale: float, positive: Sequence[str], negative: Sequence[str]
) -> Metric:
    """The style gap of a reward: under wanted phrases minus under unwanted ones."""
    wanted, unwanted = (" and ".join(f'"{each}"' for each in side) for side in (positive, negative))
    text = (
        f"Raw score of {kind} (times {scale:g}) with {wanted} before the prompt minus with {unwanted}; "
        "published tables print 100 times this."
    )
    return Metric(SGP + label, f"{label}, style gap", "sgp", True, text, SCORE_UNIT)


def feature_metrics(label: str) -> dict[str, Metric]:
    """Distances between the image features of a reward that has them, by name."""
    base = f"1 - cosine of {label}'s features and those of the base's image, 0 to 2."
    other = f"Mean 1 - cosine of {label}'s features and those of the prompt's other images, 0 to 2."
    return _registry(
        Metric(BASE_FEATURES + label, f"Distance to the base, {label}", "drift", None, base),
        Metric(DIVERSITY_FEATURES + label, f"Diversity, {label}", "drift", True, other),
    )


def off_topic_score_metric(label: str) -> Metric:
    """The plain score of a reward on control prompts."""
    text = "The same score on prompts that training is not about: what rises here has leaked."
    return Metric(
        OFF_TOPIC + SCORE + label, f"{label} off topic", "leakage", None, text, SCORE_UNIT
    )


# --- selections -----------------------------------------------------------------------------------


def by_role(metrics: Iterable[Metric]) -> list[tuple[str, list[Metric]]]:
    """(role, its metrics) in the order of `ROLES`; roles without a metric are left out."""
    found = list(metrics)
    grouped = [(role, [each for each in found if each.role == role]) for role in ROLES]
    return [(role, each) for role, each in grouped if each]


def judging(metrics: Iterable[Metric]) -> list[Metric]:
    """Metrics that say which of two images is better, the most independent role first."""
    order = [role for role in ROLES if role not in ("drift", "leakage")]
    found = [each for each in metrics if each.higher_is_better and each.role in order]
    found = [each for each in found if not each.name.endswith((POS, NEG))]
    return sorted(found, key=lambda each: order.index(each.role))


def drifting(metrics: Iterable[Metric]) -> list[Metric]:
    """Metrics of how far a model has moved, less of which is better."""
    return [each for each in metrics if each.higher_is_better is False and each.role == "drift"]
