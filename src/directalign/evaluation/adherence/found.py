"""What a detector found in an image, and how two boxes lie to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, from the upper left corner."""
MARGIN = 0.1
"""Centres count as apart, on each axis, from this part of the two boxes' added lengths on (GenEval)."""
MOSTLY = 0.5
"""Part of the whole distance that must lie along an axis for a relation: within 60 degrees of it, so that both axes may hold."""


@dataclass(frozen=True)
class Found:
    """One thing in an image; `score` is in [0, 1], `mask` says which pixels it covers where the detector knows."""

    thing: str
    score: float
    box: Box
    mask: Bool[Tensor, "H W"] | None = None


def surest(found: Sequence[Found], thing: str, threshold: float, max_overlap: float = 1.0) -> list[Found]:
    """Those of one name with a score above `threshold`, the surest first, less those that overlap a surer one too much."""
    kept: list[Found] = []
    for each in sorted((each for each in found if each.thing == thing and each.score > threshold), key=lambda each: -each.score):
        if all(overlap(each.box, other.box) <= max_overlap for other in kept):
            kept.append(each)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = _area(a) + _area(b) - shared
    return shared / union if union > 0 else 0.0


def relations(box: Box, other: Box) -> frozenset[str]:
    """Where `box` lies, seen from `other`: some of "left of", "right of", "above", "below", none where their centres are too close.

    The distance of the centres is shortened on each axis by `MARGIN` of both lengths there; what is left must be more than `MOSTLY` of
    the whole distance.
    """
    along = {("left of", "right of"): _apart(box, other, 0), ("above", "below"): _apart(box, other, 1)}
    distance = math.hypot(*(offset for offset, _ in along.values()))
    return frozenset(names[offset > 0] for names, (offset, needed) in along.items() if distance > 0 and (abs(offset) - needed) / distance > MOSTLY)


def _apart(box: Box, other: Box, axis: int) -> tuple[float, float]:
    """How far the centres are apart on an axis, and how far they must be."""
    (low, high), (other_low, other_high) = (box[axis], box[axis + 2]), (other[axis], other[axis + 2])
    return (low + high - other_low - other_high) / 2, MARGIN * (high - low + other_high - other_low)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
