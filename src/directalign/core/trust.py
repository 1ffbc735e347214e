"""How far a prediction has gone from the base model's at the same x_t and level: what a trust region holds.

Measured on what the network says, not on the images recovered from it: their distance is gain²·distance, and the gain belongs to
the jump that training happened to draw, not to the model. docs/method.md, section 6, derives what the number bounds.
"""

from __future__ import annotations

from ..types import Latents, PerSample


def distance(pred: Latents, base: Latents) -> PerSample:
    """(pred − base)² as the mean over dimensions, so that it does not grow with the latents; 0 where the two agree."""
    return ((pred - base) ** 2).mean((1, 2, 3))
