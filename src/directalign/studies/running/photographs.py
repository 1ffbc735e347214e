"""How far images have moved from real photographs of the same captions in saturation and sharpness; the colour cast is measured in every run."""

from __future__ import annotations

from ... import config
from ...evaluation.eval_prompts import fixed_pairs, measured_prompts
from ...evaluation.image_metrics import statistics
from ...evaluation.in_training import photographs
from .records import Row
import functools


DRIFTS = {"saturation_drift": "saturation", "sharpness_drift": "sharpness"}


def with_drift(rows: list[Row], num_pairs: int) -> list[Row]:
    """The rows, each measured on the first `num_pairs` pairs of the embedded world, with the two drifts beside them.

    A drift is the images' mean over the photographs' mean, minus one: 0 as in photographs, 1 twice as much, −0.5 half.
    """
    photo = photograph_statistics(num_pairs)
    return [row | {drift: row[name] / photo[name] - 1 for drift, name in DRIFTS.items()} for row in rows]


@functools.cache
def photograph_statistics(num_pairs: int) -> dict[str, float]:
    """{statistic: mean over the photographs of the first `num_pairs` pairs}."""
    images = photographs(fixed_pairs(measured_prompts(config.DataConfig(prompts="world")), num_pairs))
    return {name: float(values.double().mean()) for name, values in statistics(images).items()}
