"""The registry of metrics: name, label, role, direction, unit and description of each.

A new metric needs one entry in metrics.yaml and its function in `evaluation.image_metrics` or
`.scores`.
Tables, pages, the model card and early stopping read the registry. Metrics whose names contain a
reward's label or a style are described by their prefix, see `metric`. Those of users' files
(`evaluate.metrics`) enter `USER_METRICS` when they are loaded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
ROLES: dict[str, tuple[str, str, str]] = {
    role: (*words,) for role, words in _TABLE["roles"].items()
}
"""role: (title of a group, short name, description), in the order in which groups appear."""

HELD_OUT, OFF_TOPIC, MEMBER, STYLE = "held_out_", "off_topic_", "reward_", "style_"
SCORE, SGP = "score_", "sgp_"
POS, NEG = "_pos", "_neg"
BASE_RMSE, BASE_CAST, BASE_FEATURES = "base_rmse", "base_color_shift", "base_distance_"
DIVERSITY, DIVERSITY_FEATURES = "diversity", "diversity_"
OBEYS, OBEYS_GAP, OF_PHOTOS = "obeys", "obeys_gap", "photos_"
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


def _described(group: str) -> dict[str, Metric]:
    return {name: Metric(name, **about) for name, about in _TABLE[group].items()}


JUDGED = _described("judged")
"""Per image, by the judges of the embedded toy world."""
PIXELS = _described("pixels")
"""Per image, from the pixels only."""
TRAINING = _described("training")
"""During training: the trained reward per image, the colour drift of a set of images."""
CONTROL = _described("control")
"""On control prompts, with a direction; all others are derived, see `metric`."""
METRICS = {**JUDGED, **PIXELS, **TRAINING, **CONTROL}
USER_METRICS: dict[str, Metric] = {}
"""Of users' files, by name, filled by `evaluation.scores.user_metrics`."""
RESERVED = (
    *(OFF_TOPIC, HELD_OUT, MEMBER, STYLE, SCORE, SGP, BASE_FEATURES, DIVERSITY),
    *(OBEYS, OF_PHOTOS, "adherence"),
)
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
    for prefix, about in _TABLE["named"].items():
        if name.startswith(prefix):
            found = _filled(prefix, name.removeprefix(prefix), about)
            if prefix != HELD_OUT or not name.endswith((POS, NEG)):
                return found
            side = "wanted" if name.endswith(POS) else "unwanted"
            text = f"The same under the {side} phrases."
            return replace(found, higher_is_better=None, description=text)
    label = name.replace("_", " ").strip()
    if "sgp" in name:
        label = label.upper() if label == "sgp" else label
        text = "Score under the wanted phrases minus that under the unwanted."
        return Metric(name, label, "sgp", True, text, SCORE_UNIT)
    unit = SHARE if name.endswith(("_rate", "_share")) else ""
    return Metric(name, label[:1].upper() + label[1:], "drift", None, "As recorded.", unit)


def reward_metrics(
    label: str, kind: str, scale: float, phrases: tuple[Sequence[str], Sequence[str]]
) -> dict[str, Metric]:
    """Of a reward in a comparison: its plain score, its style gap (under wanted phrases minus under
    unwanted ones), its score on control prompts, and distances between its image features."""
    wanted, unwanted = (" and ".join(f'"{each}"' for each in side) for side in phrases)
    words = {"kind": kind, "scale": scale, "wanted": wanted, "unwanted": unwanted}
    derived = _TABLE["derived"].items()
    return {prefix + label: _filled(prefix, label, about, **words) for prefix, about in derived}


def _filled(prefix: str, rest: str, about: Mapping[str, Any], **words: Any) -> Metric:
    words |= {"rest": rest, "words": rest.replace("_", " ")}
    texts = {key: about[key].format(**words) for key in ("label", "description")}
    return Metric(prefix + rest, **{**about, **texts})


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
