"""What every number of a comparison is: its label, its role, which way is better, and its scale in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["judge", "trained", "held_out", "sgp", "drift", "leakage", "adherence"]


@dataclass(frozen=True)
class About:
    """`better`: 1 where larger is better, -1 where smaller is, 0 where a number only describes and nobody wins by it."""

    label: str
    role: Role
    better: Literal[1, 0, -1]
    scale: str


SCORE, SGP, OFF_TOPIC = "score_", "sgp_", "off_topic_"
BASE_RMSE, BASE_CAST, BASE_FEATURES = "base_rmse", "base_color_shift", "base_distance_"
DIVERSITY, DIVERSITY_FEATURES = "diversity", "diversity_"

JUDGED: dict[str, About] = {
    "photo_rate": About("Photo rate", "judge", 1, "Share of images that the world's style judge takes for a photo, 0 to 1."),
    "content": About("Content", "judge", 1, "Share of images whose colour, shape and background are all as the prompt says, 0 to 1."),
    "color": About("Colour right", "adherence", 1, "Share of images whose shape has the colour of the prompt, 0 to 1."),
    "shape": About("Shape right", "adherence", 1, "Share of images that show the shape of the prompt, 0 to 1."),
    "background": About("Background right", "adherence", 1, "Share of images whose background is the prompt's, 0 to 1."),
    "style_cg": About("Seen as CG", "judge", 0, "Share of images that the style judge takes for computer graphics, 0 to 1."),
    "style_painting": About("Seen as painting", "judge", 0, "Share of images that the style judge takes for a painting, 0 to 1."),
    "style_anime": About("Seen as anime", "judge", 0, "Share of images that the style judge takes for anime, 0 to 1."),
}
DRIFT: dict[str, About] = {
    "brightness": About("Brightness", "drift", 0, "Mean luminance (Rec. 709 on stored values), 0 to 1."),
    "saturation": About("Saturation", "drift", 0, "Mean of the largest minus the smallest channel, 0 to 1."),
    "dark_share": About("Dark share", "drift", 0, "Share of pixels with luminance below 0.1, 0 to 1."),
    "entropy": About("Entropy", "drift", 0, "Shannon entropy of the histogram of luminance in 256 levels, bits, 0 to 8."),
    "edge_density": About("Edge density", "drift", 0, "Share of pixels that differ by more than 0.1 in luminance from the next one right or below, 0 to 1."),
    "high_frequency": About("High-frequency energy", "drift", 0, "Mean square of luminance minus its 3x3 mean; 0 for a flat image, below 0.2."),
    "sharpness": About("Sharpness", "drift", 0, "Mean squared difference of neighbouring luminances, both directions added, 0 to 2."),
    "color_cast": About("Colour cast", "drift", 0, "Length of the mean colour minus its own grey; 0 for grey, 0.82 for pure red."),
    "red_cast": About("Red cast", "drift", 0, "Mean red minus the mean of all channels, -2/3 to 2/3."),
    "green_cast": About("Green cast", "drift", 0, "Mean green minus the mean of all channels, -2/3 to 2/3."),
    "blue_cast": About("Blue cast", "drift", 0, "Mean blue minus the mean of all channels, -2/3 to 2/3."),
    BASE_RMSE: About("Distance to the base, pixels", "drift", 0, "Root mean square difference to the base model's image of the same prompt and seed, 0 to 1."),
    BASE_CAST: About("Colour shift from the base", "drift", -1, "Length of the change of the colour cast from the base model's image, 0 to 1.64."),
    DIVERSITY: About("Diversity, pixels", "drift", 1, "Mean root mean square difference to the other images of the same prompt, 0 to 1; 0 is collapse."),
}
OFF_TOPIC_OWN: dict[str, About] = {
    "off_topic_style_kept": About("Off topic: style kept", "leakage", 1, "Share of off-topic images in the style that their prompt names, 0 to 1."),
    "off_topic_content": About("Off topic: content", "leakage", 1, "Share of off-topic images with the prompt's colour, shape and background, 0 to 1."),
    OFF_TOPIC + BASE_RMSE: About("Off topic: distance to the base, pixels", "leakage", -1, DRIFT[BASE_RMSE].scale),
    OFF_TOPIC + BASE_CAST: About("Off topic: colour shift", "leakage", -1, DRIFT[BASE_CAST].scale),
}


def about_reward(label: str, kind: str, scale: float, trained: bool) -> About:
    """The plain score of a reward; `trained` says that a model of the comparison was trained on it."""
    return About(label, "trained" if trained else "held_out", 1, f"Score of {kind} under the bare prompt, times {scale:g}.")


def about_sgp(label: str, kind: str, scale: float, positive: Sequence[str], negative: Sequence[str]) -> About:
    """The style gap of a reward: under wanted phrases minus under unwanted ones."""
    wanted, unwanted = (" and ".join(f'"{phrase}"' for phrase in phrases) for phrases in (positive, negative))
    says = f"Raw score of {kind} (times {scale:g}) with {wanted} before the prompt minus with {unwanted}; published tables print 100 times this."
    return About(f"{label}, style gap", "sgp", 1, says)


def about_features(label: str) -> dict[str, About]:
    """Distances between the image features of a reward that has them."""
    return {
        BASE_FEATURES + label: About(f"Distance to the base, {label}", "drift", 0, "1 - cosine of its features and those of the base's image, 0 to 2."),
        DIVERSITY_FEATURES + label: About(f"Diversity, {label}", "drift", 1, "Mean 1 - cosine of its features and those of the prompt's other images, 0 to 2."),
    }


def about_leaked(label: str) -> About:
    """The plain score of a reward on off-topic prompts."""
    return About(f"Off topic: {label}", "leakage", 0, "The same score on prompts that training is not about: what rises here has leaked.")
