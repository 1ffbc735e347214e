"""Rows as a study makes them, without a training: runs along given photo rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from directalign.studies.showing.palette import title_of

FACTS = {
    "commit": "0123abc",
    "machine": {"cores": 2, "processor": "x86_64", "threads": 1, "gpu": None},
    "versions": {"torch": "2.13"},
}


def run(
    arm: str, seed: int, photo: Sequence[float], calls: int, **more: Any
) -> list[dict[str, Any]]:
    """A run measured at equal distances: its photo rates, and call equivalents of `calls` from one to the next.

    Colour drift is a tenth of the photo rate, the reward 0.5 above it; content stays; `more` overrules any of it.
    """
    return [_row(arm, seed, place, rate, calls) | more for place, rate in enumerate(photo)]


def _row(arm: str, seed: int, place: int, photo: float, calls: int) -> dict[str, Any]:
    named = {
        "study": "table1",
        "arm": arm,
        "title": title_of(arm),
        "seed": seed,
        "step": 10 * place,
    }
    spent = {
        "seconds": 0.5 * calls * place,
        "forward_calls": calls * place,
        "backward_calls": 0,
        "call_equivalents": calls * place,
        "learning_rate": 1e-4,
    }
    rates = {"photo_rate": photo, "photo_rate_low": photo, "photo_rate_high": photo, "content": 1.0}
    drift = {
        "color_drift": photo / 10,
        "saturation_drift": 0.5,
        "sharpness_drift": -0.25,
        "diversity": 0.2,
    }
    return {**named, **spent, **rates, **drift, "score_pos": 0.5 + photo, **FACTS}
